//! Around every call on the socket: the caller's trace context in the span, counts and times by method and code, and
//! words for calls that nobody serves.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};
use prost::Message;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, Service};
use tracing::{Instrument, Span, field};

use super::absent;
use crate::telemetry::TraceContext;

/// From answers out of memory to pulls of many gigabytes.
const BUCKETS: [f64; 14] = [
    0.0005, 0.002, 0.005, 0.02, 0.05, 0.2, 0.5, 1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1200.0,
];

/// What a call is counted under: the names that every gRPC server has.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Handled {
    grpc_type: &'static str,
    grpc_service: String,
    grpc_method: String,
    grpc_code: &'static str,
}

/// Counts and times of calls.
#[derive(Clone, Debug)]
pub struct Metrics {
    started: Family<Method, Counter>,
    handled: Family<Handled, Counter>,
    seconds: Family<Method, Histogram, fn() -> Histogram>,
}

impl Metrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Metrics {
            started: Family::default(),
            handled: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        };
        registry.register(
            "grpc_server_started",
            "Calls begun",
            metrics.started.clone(),
        );
        registry.register(
            "grpc_server_handled",
            "Calls ended, by code",
            metrics.handled.clone(),
        );
        registry.register_with_unit(
            "grpc_server_handling",
            "From the first to the last byte of a call",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        metrics
    }
}

/// Puts itself around a server's services.
#[derive(Clone, Debug)]
pub struct RpcLayer {
    metrics: Metrics,
    /// By path. What is not here is counted under one name, so that a caller cannot invent label values.
    methods: Arc<HashMap<String, Method>>,
}

impl RpcLayer {
    /// Knows the methods of the encoded descriptor sets.
    pub fn new(metrics: Metrics, descriptors: &[&[u8]]) -> Result<Self, prost::DecodeError> {
        let mut methods = HashMap::new();
        for set in descriptors {
            for file in prost_types::FileDescriptorSet::decode(*set)?.file {
                for service in &file.service {
                    for method in &service.method {
                        let service = format!("{}.{}", file.package(), service.name());
                        let grpc_type = match (method.client_streaming(), method.server_streaming())
                        {
                            (false, false) => "unary",
                            (false, true) => "server_stream",
                            (true, false) => "client_stream",
                            (true, true) => "bidi_stream",
                        };
                        methods.insert(
                            format!("/{service}/{}", method.name()),
                            Method {
                                grpc_type,
                                grpc_service: service,
                                grpc_method: method.name().to_owned(),
                            },
                        );
                    }
                }
            }
        }
        Ok(RpcLayer {
            metrics,
            methods: Arc::new(methods),
        })
    }
    fn begin(&self, path: &str, context: Option<&TraceContext>) -> Call {
        let method = self.methods.get(path).cloned().unwrap_or_else(|| Method {
            grpc_type: "unary",
            grpc_service: "unknown".to_owned(),
            grpc_method: "unknown".to_owned(),
        });
        let span = tracing::info_span!(
            "rpc",
            service = method.grpc_service,
            method = method.grpc_method,
            trace_id = field::Empty,
            parent_id = field::Empty
        );
        if let Some(context) = context {
            span.record("trace_id", context.trace_id());
            span.record("parent_id", context.parent_id());
        }
        self.metrics.started.get_or_create(&method).inc();
        Call {
            metrics: self.metrics.clone(),
            method,
            span,
            started: Instant::now(),
            ended: false,
        }
    }
}

/// One call. Counted exactly once, at its end; dropped before its end it counts as cancelled.
struct Call {
    metrics: Metrics,
    method: Method,
    span: Span,
    started: Instant,
    ended: bool,
}

impl Call {
    fn end(&mut self, status: &Status) {
        let code = status.code();
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let seconds = self.started.elapsed().as_secs_f64();
        let Method {
            grpc_type,
            grpc_service,
            grpc_method,
        } = self.method.clone();
        let handled = Handled {
            grpc_type,
            grpc_service,
            grpc_method,
            grpc_code: name(code),
        };
        self.metrics.handled.get_or_create(&handled).inc();
        self.metrics
            .seconds
            .get_or_create(&self.method)
            .observe(seconds);
        self.span.in_scope(|| match code {
            Code::Ok => tracing::debug!(duration_seconds = seconds, "Call answered"),
            // Whoever watches the health, or gives up waiting, ends so; and containerd hears so of layers that are here.
            Code::Cancelled | Code::AlreadyExists => tracing::debug!(
                code = name(code),
                err = status.message(),
                duration_seconds = seconds,
                "Call ended early"
            ),
            _ => tracing::info!(
                code = name(code),
                err = status.message(),
                duration_seconds = seconds,
                "Call ended with an error"
            ),
        });
    }
    fn end_by(&mut self, headers: &HeaderMap) {
        if let Some(status) = Status::from_header_map(headers) {
            self.end(&status);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(&Status::cancelled("the caller went away"));
    }
}

/// The names Go's gRPC servers use.
fn name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

impl<S> Layer<S> for RpcLayer {
    type Service = Rpc<S>;
    fn layer(&self, inner: S) -> Rpc<S> {
        Rpc {
            inner,
            layer: self.clone(),
        }
    }
}

/// A service with [`RpcLayer`] around it.
#[derive(Clone, Debug)]
pub struct Rpc<S> {
    inner: S,
    layer: RpcLayer,
}

impl<S> Service<Request<Body>> for Rpc<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Observed>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }
    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let context = request.headers().get("traceparent");
        let context = context.and_then(|value| value.to_str().ok()?.parse::<TraceContext>().ok());
        let mut call = self.layer.begin(&path, context.as_ref());
        if let Some(context) = context {
            // For services that ask others on the caller's behalf.
            request.extensions_mut().insert(context);
        }
        let span = call.span.clone();
        let answer = span.in_scope(|| self.inner.call(request));
        Box::pin(
            async move {
                let mut answer = answer.await?;
                explain(&path, answer.headers_mut());
                // An error without messages has its status in the headers, everything else in the trailers.
                call.end_by(answer.headers());
                Ok(answer.map(|body| Observed { body, call }))
            }
            .instrument(span),
        )
    }
}

/// Gives the router's bare `Unimplemented` its words; what a service says of itself stays.
fn explain(path: &str, headers: &mut HeaderMap) {
    let bare = Status::from_header_map(headers)
        .is_some_and(|status| status.code() == Code::Unimplemented && status.message().is_empty());
    if bare {
        // Fails only where the text fits in no header; then the answer stays as it was.
        let _ = Status::unimplemented(absent::message(path)).add_header(headers);
    }
}

/// An answer's body that ends its call's count.
pub struct Observed {
    body: Body,
    call: Call,
}

impl fmt::Debug for Observed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Observed")
    }
}

impl http_body::Body for Observed {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let span = this.call.span.clone();
        let frame = span.in_scope(|| Pin::new(&mut this.body).poll_frame(cx));
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    this.call.end_by(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => this.call.end(status),
            Poll::Ready(None) => this.call.end(&Status::ok("")),
            Poll::Pending => {}
        }
        frame
    }
    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::super::proto::DESCRIPTORS;
    use super::*;

    fn text(registry: &Registry) -> String {
        crate::telemetry::encode(registry, crate::telemetry::TextForm::OpenMetrics).unwrap()
    }

    #[test]
    fn calls_are_counted_once_by_code() {
        let mut registry = Registry::default();
        let layer = RpcLayer::new(Metrics::register(&mut registry), &[DESCRIPTORS]).unwrap();
        let mut call = layer.begin("/runtime.v1.ImageService/PullImage", None);
        call.end(&Status::not_found(""));
        drop(call);
        drop(layer.begin("/runtime.v1.ImageService/StreamImages", None));
        let text = text(&registry);
        let pull = "grpc_type=\"unary\",grpc_service=\"runtime.v1.ImageService\",grpc_method=\"PullImage\"";
        let stream = "grpc_type=\"server_stream\",grpc_service=\"runtime.v1.ImageService\",grpc_method=\"StreamImages\"";
        for line in [
            format!("grpc_server_started_total{{{pull}}} 1\n"),
            format!("grpc_server_handled_total{{{pull},grpc_code=\"NotFound\"}} 1\n"),
            format!("grpc_server_handling_seconds_count{{{pull}}} 1\n"),
            format!("grpc_server_handled_total{{{stream},grpc_code=\"Canceled\"}} 1\n"),
        ] {
            assert!(text.contains(&line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn a_caller_cannot_invent_names() {
        let mut registry = Registry::default();
        let layer = RpcLayer::new(Metrics::register(&mut registry), &[DESCRIPTORS]).unwrap();
        for n in 0..10 {
            layer
                .begin(&format!("/made.up/{n}"), None)
                .end(&Status::unimplemented(""));
        }
        let text = text(&registry);
        assert!(!text.contains("made.up"), "{text}");
        assert!(
            text.contains("grpc_service=\"unknown\",grpc_method=\"unknown\"} 10\n"),
            "{text}"
        );
    }
}

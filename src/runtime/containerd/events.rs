//! What others remove in containerd.

use futures_util::{Stream, StreamExt, stream};
use prost::Message;

use super::NAMESPACE;
use super::client::Containerd;
use super::proto::containerd::events::ImageDelete;
use super::proto::events::v1::SubscribeRequest;
use super::proto::events::v1::events_client::EventsClient;

const TOPIC: &str = "/images/delete";

impl Containerd {
    /// Names that are taken away from now on, whoever does it. It ends when the connection does. containerd says nothing,
    /// not even that it listens, before the first one.
    pub fn removals(&self) -> impl Stream<Item = String> + Send + use<> {
        let mut client = EventsClient::new(self.channel.clone());
        let filter = format!("topic=={TOPIC:?},namespace=={NAMESPACE:?}");
        let request = self.request(SubscribeRequest {
            filters: vec![filter],
        });
        let events = stream::once(async move { client.subscribe(request).await });
        let events = events.filter_map(|answer| std::future::ready(answer.ok()));
        let events = events.flat_map(tonic::Response::into_inner);
        let events = events.take_while(|event| std::future::ready(event.is_ok()));
        events.filter_map(|event| {
            let event = event.ok().filter(|event| {
                // The filter is asked for; this does not rely on it.
                event.topic == TOPIC && event.namespace == NAMESPACE
            });
            let removed = event
                .and_then(|event| event.event)
                .and_then(|event| ImageDelete::decode(event.value.as_slice()).ok());
            std::future::ready(removed.map(|removed| removed.name))
        })
    }
}

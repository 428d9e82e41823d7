//! What others remove and change in containerd.

use futures_util::{Stream, StreamExt, stream};
use prost::Message;

use super::NAMESPACE;
use super::client::Containerd;
use super::proto::containerd::events::ImageDelete;
use super::proto::events::v1::SubscribeRequest;
use super::proto::events::v1::events_client::EventsClient;

const DELETE: &str = "/images/delete";
const UPDATE: &str = "/images/update";

/// What happened to a name of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NameEvent {
    /// It was taken away.
    Removed(String),
    /// Some name points elsewhere, or has other labels.
    Updated,
}

impl Containerd {
    /// What happens to names from now on, whoever does it. It ends when the connection does. containerd says nothing,
    /// not even that it listens, before the first one.
    pub fn events(&self) -> impl Stream<Item = NameEvent> + Send + use<> {
        let mut client = EventsClient::new(self.channel.clone());
        let filter = |topic| format!("topic=={topic:?},namespace=={NAMESPACE:?}");
        let request = self.request(SubscribeRequest {
            filters: [DELETE, UPDATE].map(filter).to_vec(),
        });
        let events = stream::once(async move { client.subscribe(request).await });
        let events = events.filter_map(|answer| std::future::ready(answer.ok()));
        let events = events.flat_map(tonic::Response::into_inner);
        let events = events.take_while(|event| std::future::ready(event.is_ok()));
        events.filter_map(|event| {
            // The filter is asked for; this does not rely on it.
            let event = event.ok().filter(|event| event.namespace == NAMESPACE);
            let told = event.and_then(|event| match event.topic.as_str() {
                DELETE => {
                    let value = event.event?.value;
                    let removed = ImageDelete::decode(value.as_slice()).ok()?;
                    Some(NameEvent::Removed(removed.name))
                }
                UPDATE => Some(NameEvent::Updated),
                _ => None,
            });
            std::future::ready(told)
        })
    }
}

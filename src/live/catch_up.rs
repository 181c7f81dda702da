//! Gives a connection's subscriptions the events they missed, until each is live: from memory if they are there, otherwise from
//! the log.
//!
//! Nothing is buffered in between. A subscription that is behind has a position in its channel, like any reader of a log. It
//! gets the next events as fast as its client reads, and becomes live, under the channel's lock, when none are left.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use crate::hub::rendering::TURN;
use crate::hub::{CatchUp, Connection, Packet, Recipient, Render};
use crate::live::Live;
use crate::model::event::Epoch;
use crate::model::{ChannelName, Close, Event};
use crate::pipeline::deliver::Renderer;
use crate::store::StoreError;

/// The most events that one query reads from the log.
const READ_EVENTS_MAX: usize = 500;
const READ_BYTES_MAX: usize = 1 << 20;
/// The pause between two tries if the log cannot be read.
const RETRY: Duration = Duration::from_millis(250);

/// Resolves when no subscription is behind any more. It is polled whenever the connection's task runs, so it registers no waker
/// when it waits for room: that task wakes when the client has read.
pub async fn run(live: Arc<Live>, connection: Arc<Connection>) {
    while let Some((name, key)) = connection.pop_behind() {
        one(&live, &connection, &name, &key).await;
    }
}

async fn one(live: &Live, connection: &Arc<Connection>, name: &ChannelName, key: &Arc<str>) {
    let hub = &live.hub;
    loop {
        room(connection).await;
        let next = {
            let snapshot = live.snapshot_of(connection.protocol);
            let mut renderer = Renderer::new(&snapshot, live.now());
            let next = hub.catch_up(name, connection, key, &mut renderer);
            renderer.finish();
            next
        };
        match next {
            CatchUp::Done => return,
            CatchUp::Room => tokio::task::yield_now().await,
            CatchUp::Lost => return live.end(connection, Close::PositionLost),
            CatchUp::Read { after, up_to, epoch } => {
                if let Err(error) = read(live, connection, name, key, epoch, after, up_to).await {
                    tracing::debug!(client = %connection.id, %error, "cannot read the events a client missed; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
            CatchUp::Render { events, after, seen } => give(live, connection, name, key, events, after, seen).await,
        }
    }
}

/// Reads a piece of the log and gives it to the subscription, if that is still where it was.
async fn read(
    live: &Live,
    connection: &Arc<Connection>,
    name: &ChannelName,
    key: &Arc<str>,
    epoch: Epoch,
    after: u64,
    up_to: u64,
) -> Result<(), StoreError> {
    let store = &live.store;
    let next = async || store.after(name.as_str(), epoch, after, READ_EVENTS_MAX, READ_BYTES_MAX).await;
    let mut piece = next().await?;
    if piece.events.is_empty() {
        // Events that were delivered early may not be in the log yet.
        match store.committed(store.ticket()).await {
            Ok(()) | Err(StoreError::RowRefused) => piece = next().await?,
            Err(error) => return Err(error),
        }
    }
    let first = piece.whole_from.unwrap_or(up_to + 1);
    if first > after + 1 {
        // The log may not have said yet that it removed them. If the subscription still needs them, it has lost its position.
        live.hub.trimmed(name, first);
        return Ok(());
    }
    let mut events = piece.events;
    // Events that nobody has got yet will be delivered to this subscription together with all others.
    events.retain(|event| event.offset <= up_to);
    let seen = events.last().map_or(up_to, |last| last.offset);
    give(live, connection, name, key, events.into_iter().map(Arc::new).collect(), after, seen).await;
    Ok(())
}

/// Gives events to a subscription, if it is still at the same position. With them it has seen everything up to `seen`.
async fn give(
    live: &Live,
    connection: &Arc<Connection>,
    name: &ChannelName,
    key: &Arc<str>,
    events: Vec<Arc<Event>>,
    after: u64,
    seen: u64,
) {
    let hub = &live.hub;
    let Some(view) = hub.subscription(name, connection, key) else { return };
    let Some(channel) = hub.channel(name.as_str()) else { return };
    let (mut events, mut at) = (events.into_iter().peekable(), after);
    // More may have been read than fits into the outbox: the rest is given as the client reads.
    loop {
        room(connection).await;
        let (mut packets, mut bytes, mut next) = (Vec::new(), 0, None);
        while next.is_none() {
            {
                let snapshot = live.snapshot_of(connection.protocol);
                let mut renderer = Renderer::new(&snapshot, live.now());
                let until = Instant::now() + TURN;
                while next.is_none() && Instant::now() < until {
                    let Some(event) = events.next() else {
                        next = Some(seen);
                        break;
                    };
                    renderer.begin();
                    let to = Recipient { connection, subscription: Some(&view), view: None };
                    if let Some(packet) = renderer.render(&event, to) {
                        bytes += packet.wire.len();
                        packets.push(Packet { policy: renderer.policy(&event, Some(&channel)), ..packet });
                    }
                    if bytes >= connection.outbox.bytes_max() / 4 && events.peek().is_some() {
                        next = Some(event.offset);
                    }
                }
                renderer.finish();
            }
            // A script may take its time, so others get their turn.
            if next.is_none() {
                tokio::task::yield_now().await;
            }
        }
        let next = next.unwrap_or(seen);
        if !hub.replay(name, connection, key, packets, at, next) || next == seen {
            return;
        }
        at = next;
    }
}

/// Resolves when there is room to go on.
async fn room(connection: &Connection) {
    poll_fn(|_| if connection.outbox.has_room() { Poll::Ready(()) } else { Poll::Pending }).await;
}

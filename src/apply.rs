//! Does what a decision says, as one transaction: all of it, or, where the store has no room, nothing.

use std::sync::Arc;

use crate::config::plan::ChannelPlan;
use crate::hub::{Connection, Hub, Published, Render};
use crate::model::{ChannelName, Code, Event, Fault, Now};
use crate::pipeline::Context;
use crate::pipeline::deliver::Renderer;
use crate::pipeline::effect::{Effect, Receivers};
use crate::store::{Store, Ticket};
use crate::telemetry::metrics::DropReason;

/// What came of a transaction.
#[derive(Debug, Default)]
pub struct Applied {
    /// The events that were published, in order.
    pub published: Vec<Published>,
    /// What to wait for before saying that they are stored. None: nothing of it is.
    pub ticket: Option<Ticket>,
}

/// Applies effects in order. `actor` is the connection they are about. Fails as a whole, before anything happened.
pub fn apply(context: &Context, store: &Store, actor: Option<&Arc<Connection>>, effects: Vec<Effect>, now: Now) -> Result<Applied, Fault> {
    let Context { runtime, hub, .. } = context;
    let mut channels: Vec<(ChannelName, Arc<ChannelPlan>)> = Vec::new();
    let (mut rows, mut bytes) = (0, 0);
    for effect in &effects {
        match effect {
            Effect::Leave { channel, plan, .. } => channels.push((channel.clone(), plan.clone())),
            Effect::Join { plan, view } => channels.push((view.channel.clone(), plan.clone())),
            Effect::Publish { channel, plan, event, .. } => {
                channels.push((channel.clone(), plan.clone()));
                if plan.history.is_some() {
                    rows += 1;
                    bytes += event.weight();
                }
            }
            Effect::View(_) | Effect::Direct { .. } | Effect::Send(_) | Effect::Close(_) => {}
        }
    }
    let mut permits = Vec::new();
    for _ in 0..rows {
        permits.push(store.reserve(1, bytes / rows).map_err(|why| {
            runtime.counters.drop_many(DropReason::StoreUnavailable, rows as u64);
            Fault::new(Code::Unavailable).detail(why.to_string())
        })?);
    }
    let mut held = if channels.is_empty() { None } else { Some(hub.hold(channels)?) };
    let mut renderer = Renderer::new(runtime, now);
    let mut applied = Applied::default();
    for effect in effects {
        match (effect, actor, held.as_mut()) {
            (Effect::View(view), Some(actor), _) => hub.set_view(actor, view),
            (Effect::Leave { channel, key, .. }, Some(actor), Some(held)) => held.leave(actor, &channel, &key),
            (Effect::Join { view, .. }, Some(actor), Some(held)) => held.join(actor, view, now),
            (Effect::Publish { channel, plan, event, except }, _, Some(held)) => {
                let mut stored = |event: &Arc<Event>| {
                    if let Some(permit) = permits.pop() {
                        applied.ticket = Some(permit.append(vec![(**event).clone()]).last);
                    }
                };
                if let Some(published) = held.publish(&channel, event, except, &mut renderer, &mut stored) {
                    runtime.published(Some(&plan), &published);
                    applied.published.push(published);
                }
            }
            (Effect::Direct { receivers, event, except }, _, _) => {
                let event = Arc::new(Event { new: event, channel: None, offset: 0, epoch: 0, seq: 0 });
                let published = direct(hub, &receivers, event, except, &mut renderer);
                runtime.published(None, &published);
                applied.published.push(published);
            }
            (Effect::Send(frame), Some(actor), _) => {
                actor.send(frame);
            }
            (Effect::Close(close), Some(actor), _) => actor.outbox.close(close),
            // Effects on a connection, where there is none: the pipeline makes no such decision.
            (
                Effect::View(_) | Effect::Leave { .. } | Effect::Join { .. } | Effect::Publish { .. } | Effect::Send(_) | Effect::Close(_),
                _,
                _,
            ) => {}
        }
    }
    drop(held);
    renderer.report();
    Ok(applied)
}

fn direct(hub: &Hub, receivers: &Receivers, event: Arc<Event>, except: Option<u64>, renderer: &mut Renderer<'_>) -> Published {
    let connections = match receivers {
        Receivers::Client(id) => hub.connection(id).into_iter().collect(),
        Receivers::User(user) => hub.of_user(user),
        Receivers::Session(session) => hub.of_session(session),
    };
    renderer.begin();
    let mut published = Published::new(event);
    for connection in connections.iter().filter(|c| except != Some(c.key)) {
        if let Some(frame) = renderer.render(&published.event, connection, None) {
            published.note(connection.send(frame));
        }
    }
    published
}

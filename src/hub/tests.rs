//! Channels that come and go keep their positions.

mod batching;
mod rendering;

use std::sync::Arc;

use super::*;
use crate::config::plan::{ChannelPlan, HistoryPlan, Keep, OnSlow, Promise};
use crate::hub::channel::IDLE_MS;
use crate::model::SourceLocation;
use crate::model::event::{NewEvent, Origin};
use crate::model::pattern::Pattern;

fn plan(history: bool) -> Arc<ChannelPlan> {
    let history = history.then_some(HistoryPlan { tail: 10, tail_bytes: 1 << 20, keep: Keep::default(), promise: Promise::Committed });
    Arc::new(ChannelPlan {
        id: crate::model::id::PatternId::of("hub tests"),
        pattern: Pattern::channel("room:{id}").unwrap(),
        at: SourceLocation { file: "test".into(), line: 1, column: 1 },
        history,
        audience: None,
        data: None,
        schemas: Vec::new(),
        join: None,
        publish: None,
        on_slow: OnSlow::Disconnect,
    })
}

fn name(n: usize) -> ChannelName {
    ChannelName::parse(&format!("room:{n}")).unwrap()
}

/// Publishes to a channel, visible immediately.
fn publish(hub: &Hub, name: &ChannelName, plan: &Arc<ChannelPlan>) {
    struct Nothing;
    impl Render for Nothing {
        fn begin(&mut self) {}
        fn render(&mut self, _: &Event, _: Recipient<'_>) -> Option<Packet> {
            None
        }
        fn frame(&mut self, _: &Event, _: Recipient<'_>) -> Option<crate::protocol::Frame> {
            None
        }
        fn batch(&self, _: crate::model::id::ProtocolId) -> Option<&crate::config::plan::BatchPlan> {
            None
        }
        fn joined(&self, _: crate::model::id::ProtocolId, _: &[crate::protocol::Frame]) -> Option<crate::protocol::Frame> {
            None
        }
        fn policy(&self, _: &Arc<Event>, _: Option<&Channel>) -> Option<Arc<DeliveryPolicy>> {
            None
        }
        fn group(&self, _: &Connection, _: &SubView) -> Option<u64> {
            None
        }
        fn defers(&self, _: crate::model::id::ProtocolId) -> bool {
            false
        }
        fn later(&mut self, _: Rendering) {}
    }
    let mut locked = hub.hold(vec![(name.clone(), plan.clone(), None)]).unwrap();
    let new = NewEvent {
        id: uuid::Uuid::now_v7(),
        kind: "e".into(),
        data: Json::null(),
        time_ms: Now::read().wall_ms,
        origin: Arc::new(Origin::default()),
        metadata: None,
    };
    let event = locked.assign_offset(name, new, plan.history.is_some()).unwrap();
    locked.show(Arc::new(event), None, &mut Nothing);
}

#[test]
fn idle_channels_leave_memory_but_not_their_places() {
    let hub = Hub::new([]);
    let kept = plan(true);
    let most = CHANNELS_MAX / 2;
    for n in 0..most {
        hub.channel_or_new(&name(n), &kept, None).unwrap();
    }
    publish(&hub, &name(7), &kept);
    let before = hub.position("room:7").unwrap();
    assert_eq!((before.offset, before.first), (1, 1));
    let now = Now::read();
    hub.retire(now);
    assert_eq!(hub.channel_count(), 1, "what was used just now stays");
    for n in 0..most {
        hub.channel_or_new(&name(n), &kept, None).unwrap();
    }
    hub.retire(Now { wall_ms: now.wall_ms + IDLE_MS + 1000, ..now });
    assert_eq!(hub.channel_count(), 0);
    assert_eq!(hub.position("room:7"), Some(before));
    assert_eq!(hub.position("room:8"), None);
    hub.trimmed(&name(7), 2);
    publish(&hub, &name(7), &kept);
    assert_eq!(hub.position("room:7"), Some(Position { offset: 2, first: 2, ..before }));
}

#[test]
fn memory_gives_what_the_log_has_forgotten_as_long_as_it_has_it() {
    let hub = Hub::new([]);
    let kept = plan(true);
    for _ in 0..15 {
        publish(&hub, &name(1), &kept);
    }
    assert_eq!(hub.position("room:1").map(|at| (at.first, at.offset)), Some((1, 15)));
    hub.trimmed(&name(1), 16);
    assert_eq!(hub.position("room:1").map(|at| (at.first, at.offset)), Some((6, 15)));
    let offsets = |seen| hub.tail_after("room:1", seen, 3).map(|all| all.iter().map(|event| event.offset).collect::<Vec<_>>());
    assert_eq!(offsets(5), Some(vec![6, 7, 8]));
    assert_eq!(offsets(4), None);
    assert_eq!(offsets(15), Some(vec![]));
}

#[test]
fn a_place_outlives_its_channel_also_where_its_newest_events_are_not_stored() {
    let hub = Hub::new([]);
    let (kept, passing, name) = (plan(true), plan(false), name(7));
    publish(&hub, &name, &kept);
    let before = hub.position("room:7").unwrap();
    hub.replan(|_| Some(passing.clone()));
    publish(&hub, &name, &passing);
    let epoch = hub.position("room:7").unwrap().epoch;
    assert_ne!(epoch, before.epoch);
    hub.replan(|_| None);
    assert_eq!((hub.channel_count(), hub.position("room:7")), (0, Some(Position { epoch, first: 3, offset: 2 })));
    publish(&hub, &name, &kept);
    let stored = Some(Position { epoch, first: 3, offset: 3 });
    assert_eq!(hub.position("room:7"), stored);
    // What retention removes of the epoch before makes nothing of this one available.
    hub.trimmed(&name, 2);
    assert_eq!(hub.position("room:7"), stored);
}

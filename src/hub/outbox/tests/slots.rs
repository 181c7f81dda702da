//! Slots that are reserved and filled later: the order is that of reserving, whichever is filled first, and the bound holds.

use proptest::prelude::*;

use super::*;
use crate::hub::Lifecycle;

fn reserve(outbox: &Outbox, number: u64) -> Slot {
    outbox.reserve(subscription(number, false), None, Close::slow).unwrap()
}

fn fill(outbox: &Outbox, slot: Slot, names: &[&str], given: impl Fn() -> Option<DeliveryPolicy>, number: u64) -> Vec<Sent> {
    let packets = names.iter().map(|name| text(&format!("{name:-<10}"), given())).collect();
    let sent = outbox.fill(slot, packets, subscription(number, false), None, Close::slow).unwrap();
    outbox.flush();
    sent
}

fn none() -> Option<DeliveryPolicy> {
    None
}

#[test]
fn what_comes_behind_a_place_waits_for_it() {
    let (outbox, socket) = stalled(30);
    socket.room(10_000);
    push(&outbox, "before", None, None);
    let first = reserve(&outbox, 1);
    push(&outbox, "reply1", None, None);
    let (second, third) = (reserve(&outbox, 2), reserve(&outbox, 1));
    outbox.push_joint(WIRE.message(&Frame::Text("reply2----".into())), 1, 10, Close::slow);
    assert_eq!(short(socket.written()), "before");
    assert_eq!(fill(&outbox, third, &["c"], none, 1), [Sent::Queued]);
    assert!(fill(&outbox, second, &[], none, 2).is_empty());
    assert_eq!(short(socket.written()), "before");
    assert_eq!(fill(&outbox, first, &["a", "b"], none, 1), [Sent::Queued, Sent::Queued]);
    push(&outbox, "after", None, None);
    assert_eq!(short(socket.written()), "before a b reply1 c reply2 after");
    assert_eq!((outbox.measure().bytes, outbox.measure().frames, outbox.measure().messages), (0, 0, 7));
    assert!(fill(&outbox, first, &[], none, 1).is_empty(), "nothing happens the second time");
}

#[test]
fn a_ping_and_its_answer_wait_for_nothing_and_the_end_for_everything() {
    let (outbox, socket) = stalled(30);
    socket.room(10_000);
    let slot = reserve(&outbox, 1);
    push(&outbox, "reply", None, None);
    outbox.ping();
    outbox.pong(b"", Close::slow);
    outbox.flush();
    assert_eq!(short(socket.written()), "ping pong");
    outbox.close(Close::GoingAway);
    outbox.close(Close::Idle);
    assert_eq!(push(&outbox, "late", None, None), Sent::Gone);
    assert_eq!(outbox.reserve(None, None, Close::slow), Err(Sent::Gone));
    let state = progress(&outbox);
    assert_eq!((state.lifecycle, state.written), (Lifecycle::Closing, false));
    fill(&outbox, slot, &["event"], none, 1);
    assert!(progress(&outbox).written);
    assert_eq!(short(socket.written()), "ping pong event reply close 1001 server is stopping");
}

#[test]
fn a_connection_that_is_over_has_no_places() {
    let (outbox, socket) = stalled(30);
    let slot = reserve(&outbox, 1);
    push(&outbox, "reply", None, None);
    outbox.end(Close::Lost);
    assert_eq!(fill(&outbox, slot, &["event"], none, 1), [Sent::Gone]);
    assert_eq!((outbox.measure().bytes, outbox.measure().frames, outbox.measure().dropped), (0, 0, 2));
    assert!(drain(&outbox, &socket).is_empty());
}

#[test]
fn what_is_staged_counts_for_the_bound_and_ends_the_connection_where_it_is_kept() {
    for closing in [false, true] {
        let (outbox, socket) = stalled(3);
        let slots = [reserve(&outbox, 1), reserve(&outbox, 1)];
        assert_eq!(push(&outbox, "reply", None, None), Sent::Queued);
        if closing {
            // More is filled in than there is room for, after another slot and before one.
            outbox.close(Close::GoingAway);
            assert_eq!(fill(&outbox, slots[1], &["a", "b", "c"], none, 1), [Sent::Queued, Sent::Full, Sent::Gone]);
        } else {
            assert_eq!(push(&outbox, "one more", None, None), Sent::Full);
        }
        assert_eq!(fill(&outbox, slots[0], &["late"], none, 1), [Sent::Gone]);
        let measure = outbox.measure();
        assert!(measure.bytes_peak <= measure.bytes_max, "{measure:?}");
        let why = if closing { "close 1001 server is stopping" } else { "close 1013 too slow: outbox full" };
        assert_eq!(drain(&outbox, &socket), [why]);
        assert_eq!(outbox.measure().bytes, 0);
    }
}

#[test]
fn where_there_is_no_room_what_may_be_dropped_is_and_a_position_is_kept() {
    let (outbox, socket) = stalled(3);
    let event = |offset| policy(Priority::Medium, Overflow::DropNewest, Some(offset)).map(Arc::new);
    let (with, without) = (subscription(1, true), subscription(2, false));
    let place = |offset, subscription| outbox.reserve(subscription, event(offset).as_ref(), Close::slow);
    let slots = [place(7, with).unwrap(), place(8, with).unwrap(), place(9, without).unwrap()];
    assert_eq!(place(10, without), Err(Sent::Dropped));
    assert_eq!(place(9, with), Err(Sent::Behind));
    assert!(!progress(&outbox).fallen && outbox.fallen().is_empty(), "what is staged for it comes first");
    let written = |slot: usize, name: &str, offset, subscription| {
        let packet = Packet { policy: event(offset), ..text(name, None) };
        outbox.fill(slots[slot], vec![packet], subscription, None, Close::slow).unwrap()
    };
    assert_eq!(written(2, "other", 9, without), [Sent::Queued]);
    assert_eq!(written(1, "8", 8, with), [Sent::Behind]);
    assert_eq!(written(0, "7", 7, with), [Sent::Behind]);
    assert!(progress(&outbox).fallen);
    assert_eq!((outbox.fallen(), outbox.take_fallen(1)), (vec![1], Some(6)), "from the first that it did not get");
    assert_eq!(short(drain(&outbox, &socket)), "other");
}

#[test]
fn behind_a_stalled_socket_what_is_filled_in_is_sorted_and_conflated() {
    let (outbox, socket) = stalled(30);
    let latest = || policy(Priority::Medium, Overflow::Latest("k".into()), None);
    let high = || policy(Priority::High, Overflow::Kept, None);
    push(&outbox, "a0", latest(), subscription(1, false));
    push(&outbox, "low", policy(Priority::Low, Overflow::Kept, None), subscription(2, false));
    let (first, second) = (reserve(&outbox, 1), reserve(&outbox, 2));
    push(&outbox, "a2", latest(), subscription(1, false));
    fill(&outbox, second, &["high"], high, 2);
    fill(&outbox, first, &["a1"], latest, 1);
    assert_eq!(outbox.measure().conflations.get(Conflation::Superseded), 2);
    assert_eq!(short(drain(&outbox, &socket)), "high a2 low");
}

#[test]
fn one_message_takes_the_place_of_the_last_it_has_in_it() {
    let (outbox, socket) = stalled(30);
    push(&outbox, "a", policy(Priority::Medium, Overflow::Kept, None), subscription(1, false));
    let (first, second) = (reserve(&outbox, 1), reserve(&outbox, 1));
    let number = subscription(1, false).unwrap();
    assert!(outbox.last_before(second, number).is_none(), "another place is before it");
    let last = outbox.last_before(first, number).unwrap();
    let joined = |slot| outbox.fill(slot, vec![text("ab", None)], Some(number), Some(&last), Close::slow);
    assert_eq!(joined(second), None);
    assert_eq!(joined(first), Some(vec![Sent::Queued]));
    assert_eq!(joined(second), None, "it waits no more");
    fill(&outbox, second, &["c"], none, 1);
    assert_eq!(short(drain(&outbox, &socket)), "ab c");
}

/// What the property test does.
#[derive(Clone, Debug)]
enum Act {
    Push,
    Reserve,
    /// Fills one of the open slots with this many messages.
    Fill(prop::sample::Index, usize),
    Detach,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => Just(Act::Push),
        3 => Just(Act::Reserve),
        4 => (any::<prop::sample::Index>(), 0..3usize).prop_map(|(which, count)| Act::Fill(which, count)),
        1 => Just(Act::Detach),
    ]
}

proptest! {
    #[test]
    fn the_order_is_that_of_keeping_whatever_is_filled_first(acts in prop::collection::vec(act(), 1..60)) {
        let (outbox, mut socket) = stalled(1000);
        socket.room(usize::MAX / 4);
        let mut written = Vec::new();
        let mut next = 0;
        let mut name = || {
            next += 1;
            format!("{next:-<10}")
        };
        // The results, in the order in which slots were reserved and messages pushed.
        let mut all: Vec<Vec<String>> = Vec::new();
        let mut open: Vec<(Slot, usize)> = Vec::new();
        let finish = |open: &mut Vec<(Slot, usize)>, all: &mut Vec<Vec<String>>, at: usize, names: Vec<String>| {
            let (slot, place) = open.remove(at);
            let packets = names.iter().map(|name| text(name, None)).collect();
            all[place] = names;
            outbox.fill(slot, packets, subscription(1, false), None, Close::slow);
            outbox.flush();
        };
        for act in acts {
            match act {
                Act::Push => {
                    all.push(vec![name()]);
                    outbox.push(text(&all[all.len() - 1][0], None), None, Close::slow);
                    outbox.flush();
                }
                Act::Reserve => {
                    open.push((reserve(&outbox, 1), all.len()));
                    all.push(Vec::new());
                }
                Act::Fill(which, count) if !open.is_empty() => {
                    let names = (0..count).map(|_| name()).collect();
                    let at = which.index(open.len());
                    finish(&mut open, &mut all, at, names);
                }
                Act::Fill(..) => {}
                Act::Detach => {
                    outbox.detach(Close::slow);
                    written.extend(socket.written());
                    socket = Narrow::default();
                    socket.room(usize::MAX / 4);
                    outbox.attach(Box::new(socket.clone()));
                }
            }
        }
        while !open.is_empty() {
            finish(&mut open, &mut all, 0, vec![name()]);
        }
        progress(&outbox);
        written.extend(socket.written());
        prop_assert_eq!(written, all.concat());
        prop_assert_eq!((outbox.measure().bytes, outbox.measure().frames), (0, 0));
    }
}

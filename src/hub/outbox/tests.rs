//! The outbox against a socket that accepts as many bytes as the test says: what each channel's policy does.

mod attachment;
mod model;
mod slots;

use std::io::{self, ErrorKind, IoSlice};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use parking_lot::Mutex;

use super::delivery_policy::{DeliveryPolicy, Overflow, SubscriptionId};
use super::packet::FRAME_OVERHEAD;
use super::{Outbox, Packet, Progress, Sent, Slot};
use crate::hub::Socket;
use crate::model::{Close, Priority};
use crate::protocol::Frame;
use crate::protocol::wire::Wire;
use crate::telemetry::conflation::Conflation;
use crate::testing::received;

const WIRE: Wire = Wire::WebSocket { compress: None };

/// A socket with room for some bytes.
#[derive(Clone, Debug, Default)]
struct Narrow(Arc<Mutex<(usize, Vec<u8>)>>);

impl Narrow {
    fn room(&self, bytes: usize) {
        self.0.lock().0 += bytes;
    }

    fn written(&self) -> Vec<String> {
        received(&self.0.lock().1)
    }
}

impl Socket for Narrow {
    fn try_read(&self, _: &mut [u8]) -> io::Result<usize> {
        Err(ErrorKind::WouldBlock.into())
    }

    fn try_write(&self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let (room, written) = &mut *self.0.lock();
        let mut count = 0;
        for buffer in buffers {
            let fits = buffer.len().min(*room);
            written.extend_from_slice(&buffer[..fits]);
            *room -= fits;
            count += fits;
        }
        if count == 0 { Err(ErrorKind::WouldBlock.into()) } else { Ok(count) }
    }

    fn poll_readable(&self, _: &mut Context<'_>) -> Poll<()> {
        Poll::Pending
    }

    fn poll_writable(&self, _: &mut Context<'_>) -> Poll<()> {
        if self.0.lock().0 > 0 { Poll::Ready(()) } else { Poll::Pending }
    }

    fn close(&self) {}
}

/// An outbox with room for this many messages of ten letters, and its socket, which accepts nothing yet.
fn stalled(messages: usize) -> (Outbox, Narrow) {
    let outbox = Outbox::new(WIRE, messages * (12 + FRAME_OVERHEAD));
    let socket = Narrow::default();
    outbox.attach(Box::new(socket.clone()));
    (outbox, socket)
}

fn text(text: &str, policy: Option<DeliveryPolicy>) -> Packet {
    let frame = Frame::Text(text.to_owned().into());
    Packet { wire: WIRE.message(&frame), payload: frame.len(), policy: policy.map(Arc::new) }
}

fn policy(priority: Priority, overflow: Overflow, kept_at: Option<u64>) -> Option<DeliveryPolicy> {
    Some(DeliveryPolicy { priority, overflow, kept_at, counting: None })
}

fn subscription(number: u64, positioned: bool) -> Option<SubscriptionId> {
    Some(SubscriptionId { number, positioned })
}

fn drain(outbox: &Outbox, socket: &Narrow) -> Vec<String> {
    socket.room(usize::MAX / 4);
    progress(outbox);
    socket.written()
}

fn progress(outbox: &Outbox) -> Progress {
    outbox.poll_write(&mut Context::from_waker(Waker::noop()), true)
}

/// Pushes ten letters, as a caller does who flushes afterwards.
fn push(outbox: &Outbox, name: &str, policy: Option<DeliveryPolicy>, subscription: Option<SubscriptionId>) -> Sent {
    let sent = outbox.push(text(&format!("{name:-<10}"), policy), subscription, Close::slow);
    outbox.flush();
    sent
}

fn short(told: Vec<String>) -> String {
    told.iter().map(|text| text.trim_end_matches('-')).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_full_outbox_drops_what_its_channel_says_and_nothing_of_others() {
    let (outbox, socket) = stalled(4);
    let oldest = || policy(Priority::Medium, Overflow::DropOldest, None);
    assert_eq!(push(&outbox, "kept", None, subscription(1, false)), Sent::Queued);
    for name in ["a1", "a2", "a3", "a4", "a5"] {
        assert_eq!(push(&outbox, name, oldest(), subscription(2, false)), Sent::Queued, "{name}");
    }
    let newest = policy(Priority::Medium, Overflow::DropNewest, None);
    assert_eq!(push(&outbox, "b1", newest, subscription(3, false)), Sent::Dropped, "it does not cost what another channel has");
    let measure = outbox.measure();
    assert_eq!((measure.frames, measure.bytes, measure.dropped), (4, outbox.bytes_max(), 3));
    assert_eq!([Conflation::DroppedOldest, Conflation::DroppedNewest].map(|conflation| measure.conflations.get(conflation)), [2, 1]);
    assert_eq!(short(drain(&outbox, &socket)), "kept a3 a4 a5");
    assert_eq!(outbox.measure().bytes, 0);
}

#[test]
fn what_is_never_dropped_makes_room_and_ends_the_connection_where_there_is_none() {
    let (outbox, socket) = stalled(3);
    let droppable = || policy(Priority::High, Overflow::DropNewest, None);
    push(&outbox, "a1", droppable(), subscription(1, false));
    push(&outbox, "a2", droppable(), subscription(1, false));
    push(&outbox, "kept", None, subscription(2, false));
    assert_eq!(push(&outbox, "reply", None, None), Sent::Queued);
    assert_eq!(push(&outbox, "reply2", None, None), Sent::Queued);
    assert_eq!(push(&outbox, "reply3", None, None), Sent::Full);
    assert_eq!(outbox.measure().dropped, 6);
    assert_eq!(push(&outbox, "late", None, None), Sent::Gone);
    assert_eq!(drain(&outbox, &socket), ["close 1013 too slow: outbox full"]);
}

#[test]
fn a_newer_state_takes_the_place_of_an_older_one_at_once_and_goes_last() {
    let (outbox, socket) = stalled(10);
    let state = |key: &str| policy(Priority::Medium, Overflow::Latest(key.into()), None);
    let given = |name: &str, number| push(&outbox, name, state(&name[..1]), subscription(number, false));
    for (name, number) in [("a1", 1), ("b1", 1), ("a2", 1), ("a1'", 2), ("c1", 1), ("a3", 1)] {
        assert_eq!(given(name, number), Sent::Queued);
    }
    assert_eq!(outbox.measure().conflations.get(Conflation::Superseded), 2);
    assert_eq!(outbox.measure().dropped, 0);
    assert_eq!(short(drain(&outbox, &socket)), "b1 a1' c1 a3");
}

#[test]
fn what_matters_more_goes_first_and_nothing_overtakes_what_the_client_is_told_itself() {
    let (outbox, socket) = stalled(20);
    let of = |priority| policy(priority, Overflow::Kept, None);
    for (name, given, number) in [
        ("low1", of(Priority::Low), 1),
        ("medium1", None, 2),
        ("high1", of(Priority::High), 3),
        ("reply1", None, 0),
        ("medium2", None, 2),
        ("low2", of(Priority::Low), 1),
        ("high2", of(Priority::High), 3),
        ("high3", of(Priority::High), 3),
        ("direct", of(Priority::High), 0),
        ("reply2", None, 0),
    ] {
        push(&outbox, name, given, subscription(number, false).filter(|_| number > 0));
    }
    outbox.ping();
    outbox.close(Close::GoingAway);
    let told = short(drain(&outbox, &socket));
    assert_eq!(told, "ping high1 medium1 reply1 high2 high3 direct medium2 reply2 low1 low2 close 1001 server is stopping");
}

#[test]
fn a_subscription_with_a_position_gets_its_events_in_order_and_loses_none_that_the_log_has() {
    let (outbox, socket) = stalled(4);
    let event = |priority, offset| policy(priority, Overflow::DropOldest, Some(offset));
    let (with, without) = (subscription(1, true), subscription(2, false));
    for (name, priority, offset) in [("7", Priority::Low, 7), ("8", Priority::High, 8)] {
        assert_eq!(push(&outbox, name, event(priority, offset), with), Sent::Queued);
    }
    push(&outbox, "a1", event(Priority::Medium, 1), without);
    push(&outbox, "a2", event(Priority::Medium, 2), without);
    assert_eq!(push(&outbox, "9", event(Priority::Low, 9), with), Sent::Behind, "what waits of it stays");
    assert!(progress(&outbox).fallen);
    assert_eq!(push(&outbox, "10", event(Priority::High, 10), with), Sent::Behind);
    assert_eq!((outbox.fallen(), outbox.take_fallen(1), outbox.take_fallen(1)), (vec![1], Some(8), None));
    // The room another message needs is taken from the first that still waits.
    assert_eq!(push(&outbox, "a3", event(Priority::Medium, 3), without), Sent::Queued);
    assert_eq!(outbox.take_fallen(1), Some(6));
    assert_eq!(outbox.measure().dropped, 0, "nothing is lost");
    assert_eq!(short(drain(&outbox, &socket)), "a1 a2 a3");
}

#[test]
fn what_is_half_written_is_neither_dropped_nor_overtaken() {
    let (outbox, socket) = stalled(2);
    socket.room(5);
    let oldest = |priority| policy(priority, Overflow::DropOldest, None);
    for name in ["a1", "a2", "a3", "a4"] {
        push(&outbox, name, oldest(Priority::Low), subscription(1, false));
    }
    push(&outbox, "b1", oldest(Priority::High), subscription(2, false));
    outbox.ping();
    assert_eq!(short(drain(&outbox, &socket)), "a1 ping b1");
}

#[test]
fn a_socket_that_nobody_came_to_is_not_slow() {
    let (outbox, socket) = stalled(2);
    socket.room(1000);
    for n in 0..20 {
        assert_eq!(outbox.push(text("ten letter", None), subscription(1, false), Close::slow), Sent::Queued, "{n}");
    }
    assert_eq!(drain(&outbox, &socket).len(), 20);
}

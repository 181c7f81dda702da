//! Sockets that come and go: what is queued outlives them, complete and within its bound.

use super::*;
use crate::hub::Lifecycle;
use crate::hub::outbox::PacketRun;

#[test]
fn what_a_lost_socket_took_in_part_is_written_whole_to_the_next() {
    for taken in [1, 5, 12, 13, 25] {
        let (outbox, first) = stalled(10);
        first.room(taken);
        for name in ["a1", "a2", "a3"] {
            push(&outbox, name, None, subscription(1, false));
        }
        assert!(outbox.detach(Close::slow).is_some());
        assert!(outbox.detach(Close::slow).is_none());
        push(&outbox, "a4", None, subscription(1, false));
        let second = Narrow::default();
        outbox.attach(Box::new(second.clone()));
        let whole = [12, 24].iter().filter(|end| taken >= **end).count();
        assert_eq!(short(drain(&outbox, &second)), ["a1 a2 a3 a4", "a2 a3 a4", "a3 a4"][whole], "{taken}");
        assert_eq!((outbox.measure().bytes, outbox.measure().frames), (0, 0));
    }
}

#[test]
fn without_a_socket_the_bound_and_the_policies_hold() {
    let (outbox, _) = stalled(3);
    outbox.detach(Close::slow);
    let latest = || policy(Priority::Medium, Overflow::Latest("".into()), None);
    for (name, given) in [("a1", latest()), ("low", policy(Priority::Low, Overflow::DropOldest, None)), ("a2", latest())] {
        assert_eq!(push(&outbox, name, given, subscription(1, false)), Sent::Queued, "{name}");
    }
    assert_eq!(push(&outbox, "reply1", None, None), Sent::Queued);
    assert_eq!(push(&outbox, "reply2", None, None), Sent::Queued, "what may be dropped makes room");
    assert!(outbox.measure().bytes <= outbox.bytes_max());
    let socket = Narrow::default();
    outbox.attach(Box::new(socket.clone()));
    assert_eq!(short(drain(&outbox, &socket)), "a2 reply1 reply2");

    outbox.detach(Close::slow);
    let told =
        [push(&outbox, "1", None, None), push(&outbox, "2", None, None), push(&outbox, "3", None, None), push(&outbox, "4", None, None)];
    assert_eq!(told, [Sent::Queued, Sent::Queued, Sent::Queued, Sent::Full]);
    outbox.attach(Box::new(socket.clone()));
    assert_eq!(drain(&outbox, &socket).last().unwrap(), "close 1013 too slow: outbox full");
}

#[test]
fn a_packet_that_is_whole_again_takes_the_room_that_it_needs_or_ends_the_connection() {
    for (given, after) in [(policy(Priority::Low, Overflow::DropOldest, None), "a1"), (None, "close 1013 too slow: outbox full")] {
        // Room for one packet of ten letters and for the small rest of another.
        let outbox = Outbox::new(WIRE, 13 + 2 * FRAME_OVERHEAD);
        let (first, second) = (Narrow::default(), Narrow::default());
        outbox.attach(Box::new(first.clone()));
        first.room(11);
        push(&outbox, "a1", None, None);
        assert_eq!(push(&outbox, "b1", given, subscription(1, false)), Sent::Queued);
        assert_eq!(push(&outbox, "", policy(Priority::Low, Overflow::DropNewest, None), subscription(1, false)), Sent::Dropped);
        outbox.detach(Close::slow);
        assert!(outbox.measure().bytes <= outbox.bytes_max(), "{after}");
        outbox.attach(Box::new(second.clone()));
        assert_eq!(short(drain(&outbox, &second)), after);
    }
}

#[test]
fn what_waits_is_carried_away_in_whole_packets_and_in_order() {
    let outbox = Outbox::new(WIRE, 10_000);
    let run = PacketRun::new(vec![text("one", None), text("two", None)]);
    outbox.push_run(&Arc::new(run), SubscriptionId { number: 1, positioned: false });
    outbox.push(text("three", None), None, Close::slow);
    let words = |bytes_max| received(&outbox.drain(bytes_max).concat());
    assert_eq!(words(4), ["one"], "one in any case");
    assert_eq!(words(12), ["two", "three"]);
    assert!(words(usize::MAX).is_empty());
    outbox.push(text("last", None), None, Close::slow);
    outbox.close(Close::GoingAway);
    outbox.close(Close::Idle);
    assert_eq!(words(usize::MAX), ["last", "close 1001 server is stopping"]);
    assert_eq!((outbox.measure().bytes, outbox.ended()), (0, None));
    assert_eq!(outbox.end(Close::Lost), Close::GoingAway, "the first end counts");
    assert_eq!(outbox.ended(), Some(Close::GoingAway));
    assert_eq!(progress(&outbox).lifecycle, Lifecycle::Ended);
}

#[test]
fn what_waits_sorted_is_carried_away_sorted() {
    let (outbox, _) = stalled(10);
    push(&outbox, "low", policy(Priority::Low, Overflow::Kept, None), subscription(1, false));
    push(&outbox, "high", policy(Priority::High, Overflow::Kept, None), subscription(1, false));
    outbox.detach(Close::slow);
    assert_eq!(short(received(&outbox.drain(usize::MAX).concat())), "high low");
    assert_eq!(outbox.measure().bytes, 0);
}

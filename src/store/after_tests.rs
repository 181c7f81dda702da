//! What comes after a position, and the position of the log.

use super::*;
use crate::store::tests::{Base, Rig, event, on_both};

fn offsets(events: &[Event]) -> Vec<u64> {
    events.iter().map(|event| event.offset).collect()
}

fn of(channels: &[&str]) -> Filter {
    Filter { channels: channels.iter().map(|name| (*name).into()).collect(), kind: Some("never".into()), ..Filter::default() }
}

on_both! {
    async fn one_channel_of_one_epoch_within_bounds(base) {
        let rig = Rig::of(base).await;
        rig.write((1..=5).map(|n| event("a", n, 1, "x"))).await;
        rig.write([event("b", 1, 1, "x")]).await;
        rig.write((6..=9).map(|n| event("a", n, 2, "x"))).await;
        let after = async |channel: &str, epoch, since, events, bytes| offsets(&rig.store.after(channel, epoch, since, events, bytes).await.unwrap().events);
        assert_eq!(after("a", 2, 6, 100, 1 << 20).await, [7, 8, 9]);
        assert_eq!(after("a", 2, 0, 100, 1 << 20).await, [6, 7, 8, 9]);
        assert_eq!(after("a", 1, 3, 100, 1 << 20).await, [4, 5]);
        assert_eq!(after("a", 2, 6, 2, 1 << 20).await, [7, 8]);
        assert_eq!(after("a", 2, 6, 100, 0).await, [7], "one at least");
        assert_eq!(after("a", 2, 9, 100, 1 << 20).await, [0; 0]);
        assert_eq!(after("nowhere", 1, 0, 100, 1 << 20).await, [0; 0]);
        assert_eq!(after("", 1, u64::MAX, 100, 1 << 20).await, [0; 0]);
        let standing = rig.store.stored_channel(&ChannelName::parse("a").unwrap()).await.unwrap().unwrap();
        assert_eq!((standing.epoch, standing.top, standing.first), (2, 9, 1));
        assert_eq!(rig.store.stored_channel(&ChannelName::parse("c").unwrap()).await.unwrap(), None);
        rig.stop().await;
    }

    async fn what_was_removed_is_told_from_what_was_refused(base) {
        let rig = Rig::of(base).await;
        rig.write((1..=3).map(|n| event("a", n, 1, "x"))).await;
        // Offset 1 is taken, so offsets 4 and 5 are refused with it.
        let bad = [event("a", 4, 1, "x"), event("a", 1, 1, "taken"), event("a", 5, 1, "x")];
        rig.store.reserve(3, 0).unwrap().append(bad.into(), &[]);
        rig.write((6..=9).map(|n| event("a", n, 1, "x"))).await;
        let after = async |epoch, since| {
            let piece = rig.store.after("a", epoch, since, 100, 1 << 20).await.unwrap();
            (offsets(&piece.events), piece.whole_from)
        };
        assert_eq!(after(1, 1).await, (vec![2, 3, 6, 7, 8, 9], Some(2)));
        assert_eq!(after(1, 3).await, (vec![6, 7, 8, 9], Some(1)), "refused");
        assert_eq!(after(1, 9).await, (vec![], Some(1)));
        for sql in ["DELETE FROM events WHERE \"offset\" < 8", "UPDATE channels SET first = 8"] {
            base.stranger().await.run(sql).await;
        }
        assert_eq!(after(1, 3).await, (vec![8, 9], Some(8)));
        assert_eq!(after(1, 7).await, (vec![8, 9], Some(8)));
        base.stranger().await.run("UPDATE channels SET first = 9").await;
        assert_eq!(after(1, 3).await, (vec![8, 9], Some(8)), "removed after it was read");
        assert_eq!(after(1, 9).await, (vec![], Some(9)));
        assert_eq!(after(2, 3).await, (vec![], None), "another epoch");
        rig.stop().await;
    }

    async fn positions_and_walks_are_of_a_filters_channels(base) {
        let rig = Rig::of(base).await;
        let empty = rig.store.log_position(&of(&[])).await.unwrap();
        assert_eq!((empty.log, empty.seq, empty.tops, empty.gone), (rig.recovered.log, 0, 0, 0));
        for n in 1..=300 {
            rig.write([event("room:a", n, 1, "x"), event("room:b", n, 1, "x"), event("c", n, 1, "x")]).await;
        }
        base.stranger().await.run("UPDATE channels SET gone = 7 WHERE name = 'room:b'").await;
        for (channels, tops, gone) in [(&[][..], 900, 7), (&["c"], 300, 0), (&["room:*"], 600, 7), (&["c", "room:a"], 600, 0), (&["nowhere"], 0, 0)] {
            let filter = of(channels);
            let at = rig.store.log_position(&filter).await.unwrap();
            assert_eq!((at.seq, at.tops, at.gone), (900, tops, gone), "{channels:?}");
            assert_eq!(rig.store.count_between(&filter, 300, 600, tops / 3).await.unwrap(), Some(tops / 3), "{channels:?}");
            if tops > 0 {
                assert_eq!(rig.store.count_between(&filter, 300, 600, tops / 3 - 1).await.unwrap(), None, "{channels:?}");
            }
            let mut walk = rig.store.walk(&filter, 450).await.unwrap();
            let mut found = Vec::new();
            while let Some(events) = walk.next().await.unwrap() {
                found.extend(events.iter().map(|event| event.seq));
            }
            let wanted: Vec<u64> = (451..=900).filter(|seq| filter.takes_channel(Some(["c", "room:a", "room:b"][*seq as usize % 3]))).collect();
            assert_eq!(found, wanted, "{channels:?}");
        }
        rig.stop().await;
    }

    async fn a_walk_over_several_channels_ends_where_the_log_ended_when_it_began(base) {
        let rig = Rig::of(base).await;
        rig.write([event("room:a", 1, 1, "x")]).await;
        let filter = of(&["room:*"]);
        let mut walk = rig.store.walk(&filter, 0).await.unwrap();
        // The first is of a channel that the walk does not know. Returning the second would mean to skip it.
        rig.write([event("room:new", 1, 1, "x"), event("room:a", 2, 1, "x")]).await;
        let mut found = Vec::new();
        while let Some(events) = walk.next().await.unwrap() {
            found.extend(events.iter().map(|event| event.seq));
        }
        assert_eq!(found, [1]);
        let mut rest = rig.store.walk(&filter, 1).await.unwrap();
        assert_eq!(rest.next().await.unwrap().unwrap().iter().map(|event| event.seq).collect::<Vec<_>>(), [2, 3]);
        rig.stop().await;
    }
}

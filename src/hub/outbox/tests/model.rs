//! The outbox compared with a plain model that looks at everything that waits each time, at random.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// One step of the test.
#[derive(Clone, Debug)]
enum Act {
    /// Which kind of message, its priority, its key, its length.
    Push(usize, Priority, u8, usize),
    /// The socket accepts this many bytes.
    Room(usize),
    /// Subscriptions that fell behind are told.
    Fallen,
    Ping,
}

fn act() -> impl Strategy<Value = Act> {
    let priority = prop::sample::select(Priority::ALL.map(|(_, priority)| priority).to_vec());
    prop_oneof![
        8 => (0..8usize, priority, 0..3u8, 4..120usize).prop_map(|(kind, priority, key, length)| Act::Push(kind, priority, key, length)),
        3 => (1..400usize).prop_map(Act::Room),
        1 => Just(Act::Fallen),
        1 => Just(Act::Ping),
    ]
}

/// A message in the model.
#[derive(Clone, Debug)]
struct Message {
    name: String,
    length: usize,
    lane: Option<Priority>,
    priority: Priority,
    kind: usize,
    key: u8,
    offset: u64,
}

const OWN: usize = 0;
const OLDEST: usize = 1;
const NEWEST: usize = 2;
const LATEST: usize = 3;
const RECOVERED_OLDEST: usize = 4;
const RECOVERED_NEWEST: usize = 5;
const ORDERED: usize = 6;

impl Message {
    fn cost_bytes(&self) -> usize {
        self.length + FRAME_OVERHEAD + usize::from(self.kind == LATEST)
    }

    fn droppable(&self) -> bool {
        [OLDEST, NEWEST, RECOVERED_OLDEST, RECOVERED_NEWEST].contains(&self.kind)
    }

    fn recoverable(&self) -> bool {
        [RECOVERED_OLDEST, RECOVERED_NEWEST].contains(&self.kind)
    }

    fn positioned(&self) -> bool {
        self.recoverable() || self.kind == ORDERED
    }
}

/// What an outbox does, by looking at everything each time.
#[derive(Debug, Default)]
struct Model {
    /// In the order in which they came.
    waiting: Vec<Message>,
    /// The rest of what is partly written, with its name.
    begun: Option<(String, usize)>,
    pings: usize,
    fallen: BTreeMap<usize, u64>,
    written: Vec<String>,
    room: usize,
    blocked: bool,
}

impl Model {
    fn bytes(&self) -> usize {
        let begun = self.begun.as_ref().map_or(0, |(_, left)| left + FRAME_OVERHEAD);
        self.waiting.iter().map(Message::cost_bytes).sum::<usize>() + begun + self.pings * (2 + FRAME_OVERHEAD)
    }

    /// Which one is written next.
    fn next(&self) -> Option<usize> {
        let is_low = |m: &Message| m.lane == Some(Priority::Low);
        let end = self.waiting.iter().position(|m| m.lane.is_none()).map_or(self.waiting.len(), |own| own + 1);
        let of = |lane: Option<Priority>| self.waiting[..end].iter().position(|m| m.lane == lane);
        of(Some(Priority::High))
            .or_else(|| of(Some(Priority::Medium)))
            .or_else(|| of(None))
            .or_else(|| self.waiting.iter().position(is_low))
    }

    fn write(&mut self) {
        loop {
            let (name, left) = match self.begun.take() {
                Some(begun) => begun,
                None if self.pings > 0 => {
                    if self.room == 0 {
                        return self.blocked = true;
                    }
                    self.pings -= 1;
                    ("ping".into(), 2)
                }
                None => match self.next() {
                    None => return self.blocked = false,
                    Some(_) if self.room == 0 => return self.blocked = true,
                    Some(at) => {
                        let message = self.waiting.remove(at);
                        (message.name, message.length)
                    }
                },
            };
            if left > self.room {
                self.begun = Some((name, left - self.room));
                self.room = 0;
                return self.blocked = true;
            }
            self.room -= left;
            self.written.push(name);
        }
    }

    fn push(&mut self, mut new: Message, bytes_max: usize) -> Sent {
        if self.fallen.contains_key(&new.kind) {
            return Sent::Behind;
        }
        if self.blocked && new.kind == LATEST {
            self.waiting.retain(|m| (m.kind, m.key) != (new.kind, new.key));
        }
        let excess = (self.bytes() + new.cost_bytes()).saturating_sub(bytes_max);
        if excess > 0 {
            let mut victims: Vec<Message> = self.waiting.iter().filter(|m| m.droppable()).cloned().collect();
            let age = |m: &Message| if [NEWEST, RECOVERED_NEWEST].contains(&m.kind) { -(m.offset as i64) } else { m.offset as i64 };
            victims.sort_by_key(|m| (std::cmp::Reverse(m.priority), age(m)));
            if new.droppable() {
                let own = |m: &Message| new.kind == OLDEST && m.kind == new.kind && m.priority == new.priority;
                victims.retain(|m| m.priority > new.priority || own(m));
            }
            if victims.iter().map(Message::cost_bytes).sum::<usize>() < excess {
                if new.recoverable() {
                    self.fallen.insert(new.kind, new.offset - 1);
                    return Sent::Behind;
                }
                return if new.droppable() { Sent::Dropped } else { Sent::Full };
            }
            let mut victims = victims.into_iter();
            while self.bytes() + new.cost_bytes() > bytes_max {
                let victim = victims.next().unwrap();
                if victim.recoverable() {
                    if let Some(first) = self.waiting.iter().find(|m| m.kind == victim.kind) {
                        self.fallen.insert(victim.kind, first.offset - 1);
                    }
                    self.waiting.retain(|m| m.kind != victim.kind);
                } else {
                    self.waiting.retain(|m| m.offset != victim.offset);
                }
            }
            if self.fallen.contains_key(&new.kind) {
                return Sent::Behind;
            }
        }
        if new.positioned()
            && let Some(last) = self.waiting.iter().rev().find(|m| m.kind == new.kind)
        {
            new.lane = new.lane.max(last.lane);
        }
        self.waiting.push(new);
        Sent::Queued
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn an_outbox_does_what_a_look_at_everything_would_do(acts in prop::collection::vec(act(), 1..80), messages in 2..12usize) {
        let (outbox, socket) = stalled(messages);
        let mut model = Model::default();
        for (number, act) in acts.into_iter().enumerate() {
            let offset = number as u64 + 1;
            match act {
                Act::Push(kind, priority, key, length) => {
                    let name = format!("{offset:-<length$}");
                    let overflow = match kind {
                        OLDEST | RECOVERED_OLDEST => Overflow::DropOldest,
                        NEWEST | RECOVERED_NEWEST => Overflow::DropNewest,
                        LATEST => Overflow::Latest(key.to_string().into()),
                        _ => Overflow::Kept,
                    };
                    let own = kind == OWN;
                    let message = Message {
                        name: name.clone(),
                        length: name.len() + 2,
                        lane: if own { None } else { Some(priority) },
                        priority: if own { Priority::Medium } else { priority },
                        kind,
                        key,
                        offset,
                    };
                    let subscription = subscription(kind as u64, message.positioned()).filter(|_| !own);
                    let given = if own { None } else { policy(priority, overflow, Some(offset)) };
                    let sent = outbox.push(text(&name, given), subscription, Close::slow);
                    outbox.flush();
                    prop_assert_eq!(sent, model.push(message, outbox.bytes_max()));
                    if sent == Sent::Full {
                        prop_assert!(!outbox.is_open());
                        return Ok(());
                    }
                    if !model.blocked {
                        model.write();
                    }
                }
                Act::Room(bytes) => {
                    socket.room(bytes);
                    model.room += bytes;
                    progress(&outbox);
                    model.write();
                    prop_assert_eq!(outbox.is_blocked(), model.blocked);
                }
                Act::Fallen => {
                    for (kind, after) in std::mem::take(&mut model.fallen) {
                        prop_assert_eq!(outbox.take_fallen(kind as u64), Some(after));
                    }
                    prop_assert!(outbox.fallen().is_empty());
                }
                // A ping that does not fit is written anyway; the bound is for what others push.
                Act::Ping if outbox.measure().bytes + 2 + FRAME_OVERHEAD <= outbox.bytes_max() => {
                    outbox.ping();
                    outbox.flush();
                    model.pings += 1;
                    if !model.blocked {
                        model.write();
                    }
                }
                Act::Ping => {}
            }
            let measure = outbox.measure();
            prop_assert_eq!(measure.bytes, model.bytes());
            prop_assert!(measure.bytes <= measure.bytes_max);
        }
        model.room = usize::MAX / 4;
        model.write();
        prop_assert_eq!(drain(&outbox, &socket), model.written);
        prop_assert_eq!((outbox.measure().bytes, outbox.measure().frames), (0, 0));
    }
}

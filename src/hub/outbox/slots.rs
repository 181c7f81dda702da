//! Slots in an outbox for messages that are still being written: reserved in the order of the channels, filled later by the
//! renderer, with no channel locked. What is queued behind such a slot is staged. It is queued, as if it came then, once all
//! slots before it are filled. Nothing is staged for a connection without open slots.
//!
//! What is staged counts towards the outbox's bound, and so does each open slot. If there is no room, a message that may be
//! dropped is dropped, and one that may not ends the connection as too slow.

use std::collections::VecDeque;

use super::delivery_policy::{DeliveryPolicy, SubscriptionId};
use super::lifecycle::Lifecycle;
use super::packet::{FRAME_OVERHEAD, QueuedFrame};
use super::queue::OutboxQueue;
use super::{Arc, Close, MutexGuard, Outbox, Packet, Sent};

/// A slot that is reserved in an outbox. To be filled once, with one message, several or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u64);

/// What waits for slots to be filled.
#[derive(Debug, Default)]
pub(super) struct Staged {
    items: VecDeque<Item>,
    /// The number of the first item. Items before it had the numbers below.
    base: u64,
    pub(super) bytes: usize,
    /// The close packet waits after all of it.
    close: bool,
}

#[derive(Debug)]
enum Item {
    Open,
    Ready(Vec<Message>),
}

/// One frame, and the number and bytes of the messages in it.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) frame: QueuedFrame,
    pub(super) count: u64,
    pub(super) payload: u64,
}

impl Item {
    fn cost_bytes(&self) -> usize {
        match self {
            Item::Open => FRAME_OVERHEAD,
            Item::Ready(messages) => messages.iter().map(|message| message.frame.cost_bytes()).sum(),
        }
    }
}

impl Staged {
    pub(super) fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Frames that wait.
    pub(super) fn len(&self) -> usize {
        self.items.iter().map(|item| if let Item::Ready(messages) = item { messages.len() } else { 1 }).sum()
    }

    fn push(&mut self, item: Item) -> Slot {
        self.bytes += item.cost_bytes();
        self.items.push_back(item);
        Slot(self.base + self.items.len() as u64 - 1)
    }

    /// The index of an open slot. `None` if it was given up with everything that waited.
    fn find(&self, slot: Slot) -> Option<usize> {
        let at = usize::try_from(slot.0.checked_sub(self.base)?).ok()?;
        self.items.get(at).filter(|item| matches!(item, Item::Open)).map(|_| at)
    }

    fn replace(&mut self, at: usize, item: Item) {
        self.bytes += item.cost_bytes();
        self.bytes -= std::mem::replace(&mut self.items[at], item).cost_bytes();
    }

    /// Takes the first item, unless it is an open slot.
    fn pop(&mut self) -> Option<Vec<Message>> {
        let first = self.items.pop_front_if(|item| matches!(item, Item::Ready(_)))?;
        self.bytes -= first.cost_bytes();
        self.base += 1;
        if self.items.is_empty() {
            self.items = VecDeque::new();
        }
        if let Item::Ready(messages) = first { Some(messages) } else { None }
    }

    /// Gives up everything, and returns how many messages that were.
    pub(super) fn clear(&mut self) -> u64 {
        let items = std::mem::take(&mut self.items);
        self.base += items.len() as u64;
        self.bytes = 0;
        items.into_iter().map(|item| if let Item::Ready(all) = item { all.iter().map(|message| message.count).sum() } else { 0 }).sum()
    }
}

impl OutboxQueue {
    /// Whether something waits for slots to be filled.
    pub(super) fn is_staging(&self) -> bool {
        self.staged.as_ref().is_some_and(|staged| !staged.is_empty())
    }

    /// Whether what was accepted may still be queued.
    fn takes(&self) -> bool {
        self.is_open() || self.staged.as_ref().is_some_and(|staged| staged.close)
    }

    /// Stages the close packet. `false` if nothing is staged.
    pub(super) fn stage_close(&mut self) -> bool {
        let staged = self.staged.as_mut().filter(|staged| !staged.is_empty());
        staged.map(|staged| staged.close = true).is_some()
    }

    /// Takes the staged close packet, if there is one.
    pub(super) fn take_staged_close(&mut self) -> bool {
        self.staged.as_mut().is_some_and(|staged| std::mem::take(&mut staged.close))
    }
}

impl Outbox {
    /// Whether there are open slots, or something waits for them.
    #[cfg(test)]
    pub(crate) fn has_places(&self) -> bool {
        self.queue.lock().is_staging()
    }

    /// Reserves a slot. `policy`: that of the first message it is for. Instead of a slot it may return what became of the
    /// messages.
    pub(in crate::hub) fn reserve(
        &self,
        subscription: Option<SubscriptionId>,
        policy: Option<&Arc<DeliveryPolicy>>,
        slow: impl FnOnce() -> Close,
    ) -> Result<Slot, Sent> {
        let mut queue = self.queue.lock();
        if !queue.is_open() {
            return Err(Sent::Gone);
        }
        if let Some(sent) = self.refuse(&mut queue, FRAME_OVERHEAD, subscription, policy, slow) {
            queue.note(sent, 1, 0);
            return Err(self.after(queue, sent));
        }
        Ok(queue.staged.get_or_insert_default().push(Item::Open))
    }

    /// Stages a message behind the open slots; there must be one.
    pub(super) fn stage(&self, mut queue: MutexGuard<'_, OutboxQueue>, message: Message, slow: impl FnOnce() -> Close) -> Sent {
        let frame = &message.frame;
        if let Some(sent) = self.refuse(&mut queue, frame.cost_bytes(), frame.subscription, frame.policy.as_ref(), slow) {
            queue.note(sent, message.count, message.payload);
            return self.after(queue, sent);
        }
        queue.staged.get_or_insert_default().push(Item::Ready(vec![message]));
        Sent::Queued
    }

    /// What becomes of a message that cannot be staged. `None`: there is room.
    fn refuse(
        &self,
        queue: &mut OutboxQueue,
        cost: usize,
        subscription: Option<SubscriptionId>,
        policy: Option<&Arc<DeliveryPolicy>>,
        slow: impl FnOnce() -> Close,
    ) -> Option<Sent> {
        if let Some(subscription) = subscription
            && queue.fall_back(subscription, policy)
        {
            return Some(Sent::Behind);
        }
        if queue.total_bytes() + cost <= self.bytes_max() {
            return None;
        }
        match subscription.zip(policy.filter(|policy| policy.is_droppable())) {
            Some((subscription, policy)) => Some(queue.refuse(policy, subscription)),
            None => {
                queue.finish(self.wire, slow());
                Some(Sent::Full)
            }
        }
    }

    /// The last message of a subscription before a slot, if the slot is the first and the socket accepts nothing.
    pub(in crate::hub) fn last_before(&self, slot: Slot, subscription: SubscriptionId) -> Option<Arc<DeliveryPolicy>> {
        let queue = self.queue.lock();
        queue.staged.as_ref()?.find(slot).filter(|at| *at == 0)?;
        queue.backlog.as_ref().filter(|_| queue.blocked)?.last(subscription).cloned()
    }

    /// Fills a slot with these messages, and returns what became of each. `instead_of`: a waiting message that the only new one
    /// includes. If it can no longer be taken back, the slot stays open and the result is `None`. The caller must flush
    /// afterwards.
    pub(in crate::hub) fn fill(
        &self,
        slot: Slot,
        packets: Vec<Packet>,
        subscription: Option<SubscriptionId>,
        instead_of: Option<&Arc<DeliveryPolicy>>,
        slow: impl Fn() -> Close,
    ) -> Option<Vec<Sent>> {
        let mut queue = self.queue.lock();
        let place = queue.staged.as_ref().and_then(|staged| staged.find(slot));
        if let Some((last, subscription)) = instead_of.zip(subscription) {
            let is_next = place == Some(0) && queue.takes();
            if !is_next || !queue.in_backlog(|backlog| backlog.take_last(subscription, last)) {
                return None;
            }
        }
        let messages = packets.into_iter().map(|packet| {
            let payload = packet.payload as u64;
            Message { frame: packet.into_frame(subscription), count: 1, payload }
        });
        let mut sent = Vec::new();
        match (place, queue.staged.as_mut()) {
            (Some(0), Some(staged)) => {
                staged.replace(0, Item::Ready(Vec::new()));
                staged.pop();
                sent.extend(messages.map(|message| self.go_on(&mut queue, message, &slow)));
            }
            (Some(at), Some(_)) => {
                let (mut ready, mut bytes) = (Vec::new(), 0);
                for message in messages {
                    let frame = &message.frame;
                    // The slot itself makes room for some of it.
                    bytes += frame.cost_bytes();
                    let more = bytes.saturating_sub(FRAME_OVERHEAD);
                    let became = match queue.staged.as_ref().and_then(|staged| staged.find(slot)) {
                        Some(_) => self.refuse(&mut queue, more, subscription, frame.policy.as_ref(), &slow),
                        None => Some(Sent::Gone),
                    };
                    if became.is_some() {
                        bytes -= frame.cost_bytes();
                    }
                    match became {
                        None => ready.push(message),
                        Some(became) => queue.note(became, message.count, message.payload),
                    }
                    sent.push(became.unwrap_or(Sent::Queued));
                }
                // A connection that has just ended as too slow has no slots any more.
                if let Some(staged) = queue.staged.as_mut().filter(|staged| staged.find(slot).is_some()) {
                    staged.replace(at, Item::Ready(ready));
                }
            }
            _ => sent.extend(messages.map(|message| {
                queue.note(Sent::Gone, message.count, 0);
                Sent::Gone
            })),
        }
        let wake = self.unstage(&mut queue, &slow) || sent.contains(&Sent::Full) || queue.has_fallen();
        drop(queue);
        if wake {
            self.waker.wake();
        }
        Some(sent)
    }

    /// Queues a message that was accepted.
    fn go_on(&self, queue: &mut OutboxQueue, message: Message, slow: &impl Fn() -> Close) -> Sent {
        let sent = if queue.takes() { self.admit(queue, message.frame, slow) } else { Sent::Gone };
        queue.note(sent, message.count, message.payload);
        sent
    }

    /// Queues what no longer waits for a slot. `true`: the connection's task must know.
    fn unstage(&self, queue: &mut OutboxQueue, slow: &impl Fn() -> Close) -> bool {
        let mut full = false;
        while let Some(messages) = queue.staged.as_mut().and_then(|staged| staged.pop()) {
            for message in messages {
                full |= self.go_on(queue, message, slow) == Sent::Full;
            }
        }
        let closes = !queue.is_staging() && queue.take_staged_close();
        if closes && queue.lifecycle != Lifecycle::Ended {
            queue.put_close(self.wire);
        }
        full || closes
    }
}

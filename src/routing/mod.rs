//! From a name to what the configuration says of it: channels by exact name or pattern, audiences by user or session,
//! listeners by path. Built once when the file is read; a look-up is one hash, or a walk over the few patterns.

pub mod doors;
pub mod paths;
pub mod table;

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::plan::{Audience, ChannelPlan};
use crate::model::ChannelName;

/// All channels of a configuration.
#[derive(Debug)]
pub struct ChannelTable {
    exact: HashMap<Box<str>, Arc<ChannelPlan>>,
    /// The pattern with the most literal text first.
    patterns: Vec<Arc<ChannelPlan>>,
    user: Option<Arc<ChannelPlan>>,
    session: Option<Arc<ChannelPlan>>,
}

impl ChannelTable {
    /// Indexes the channels.
    pub fn new(channels: &[Arc<ChannelPlan>]) -> Self {
        let (exact, mut patterns): (Vec<_>, Vec<_>) = channels.iter().cloned().partition(|c| c.pattern.is_exact());
        patterns.sort_by_key(|c| std::cmp::Reverse(c.pattern.literal_len()));
        let audience = |wanted| channels.iter().find(|c| c.audience == Some(wanted)).cloned();
        Self {
            exact: exact.into_iter().map(|c| (c.pattern.as_str().into(), c)).collect(),
            patterns,
            user: audience(Audience::User),
            session: audience(Audience::Session),
        }
    }

    /// What allows this name, if anything does.
    pub fn resolve(&self, name: &str) -> Option<(ChannelName, Arc<ChannelPlan>)> {
        let plan = match self.exact.get(name) {
            Some(plan) => plan,
            None => self.patterns.iter().find(|c| c.pattern.matches(name).is_some())?,
        };
        Some((ChannelName::parse(name)?, plan.clone()))
    }

    /// The name of the channel whose events are for this user or session, where the configuration has one.
    pub fn audience(&self, audience: Audience, who: &str) -> Option<String> {
        let plan = match audience {
            Audience::User => self.user.as_ref(),
            Audience::Session => self.session.as_ref(),
        };
        plan.map(|plan| plan.pattern.fill(who))
    }
}

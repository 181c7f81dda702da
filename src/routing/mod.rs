//! From a name to its configuration: channels by exact name or pattern, audiences by user or session,
//! listeners by path. Built once when the file is read; a look-up is a hash or two, and a walk over the few patterns that remain.

pub mod listeners;
pub mod paths;
pub mod table;

use std::collections::HashMap;
use std::sync::Arc;

use crate::config::plan::{Audience, ChannelPlan};
use crate::model::ChannelName;

/// By names of the configuration.
type Names<T> = HashMap<Box<str>, T, foldhash::fast::RandomState>;

/// All channels of a configuration.
#[derive(Debug)]
pub struct ChannelTable {
    exact: Names<Arc<ChannelPlan>>,
    /// The pattern with the most literal text first.
    patterns: Vec<Arc<ChannelPlan>>,
    /// Places of the patterns whose names all begin with this, up to the first separator.
    by_segment: Names<Vec<usize>>,
    /// Places of the others.
    anywhere: Vec<usize>,
    user: Option<Arc<ChannelPlan>>,
    session: Option<Arc<ChannelPlan>>,
}

impl ChannelTable {
    /// Indexes the channels.
    pub fn new(channels: &[Arc<ChannelPlan>]) -> Self {
        let (exact, mut patterns): (Vec<_>, Vec<_>) = channels.iter().cloned().partition(|c| c.pattern.is_exact());
        patterns.sort_by_key(|c| std::cmp::Reverse(c.pattern.literal_len()));
        let mut by_segment: Names<Vec<usize>> = Names::default();
        let mut anywhere = Vec::new();
        for (place, channel) in patterns.iter().enumerate() {
            match channel.pattern.first_segment() {
                Some(segment) => by_segment.entry(segment.into()).or_default().push(place),
                None => anywhere.push(place),
            }
        }
        let audience = |wanted| channels.iter().find(|c| c.audience == Some(wanted)).cloned();
        Self {
            exact: exact.into_iter().map(|c| (c.pattern.as_str().into(), c)).collect(),
            patterns,
            by_segment,
            anywhere,
            user: audience(Audience::User),
            session: audience(Audience::Session),
        }
    }

    /// What allows this name, if anything does.
    pub fn resolve(&self, name: &str) -> Option<(ChannelName, Arc<ChannelPlan>)> {
        let plan = match self.exact.get(name) {
            Some(plan) => plan,
            None => self.matching(name)?,
        };
        Some((ChannelName::parse(name)?, plan.clone()))
    }

    /// The first pattern that matches.
    fn matching(&self, name: &str) -> Option<&Arc<ChannelPlan>> {
        let first = |places: &[usize]| places.iter().copied().find(|place| self.patterns[*place].pattern.is_match(name));
        let segment = name.split_once(':').map(|(segment, _)| segment).filter(|_| !self.by_segment.is_empty());
        let of_segment = segment.and_then(|segment| self.by_segment.get(segment)).and_then(|places| first(places));
        let place = [of_segment, first(&self.anywhere)].into_iter().flatten().min()?;
        self.patterns.get(place)
    }

    /// The name of the channel whose events are for this user or session, where the configuration has one.
    pub fn audience(&self, audience: Audience, principal: &str) -> Option<String> {
        let plan = match audience {
            Audience::User => self.user.as_ref(),
            Audience::Session => self.session.as_ref(),
        };
        plan.map(|plan| plan.pattern.fill(principal))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use crate::model::pattern::Pattern;
    use crate::testing::runtime;

    fn channels() -> impl Strategy<Value = Vec<String>> {
        let segment = "a|b|ab|\\{x\\}|a\\{x\\}|\\{x\\}b";
        let last = "a|b|\\{y\\}|b\\{y\\}|\\{y\\*\\}";
        prop::collection::vec((segment, last).prop_map(|(first, last)| format!("{first}:{last}")), 1..8)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn the_most_literal_pattern_that_matches_is_found(channels in channels(), names in prop::collection::vec("[ab:]{1,5}", 20)) {
            // What matches the same names is refused when the file is read.
            let mut shapes: Vec<(String, &String)> = channels.iter().map(|text| (Pattern::channel(text).unwrap().fill("{}"), text)).collect();
            shapes.sort();
            shapes.dedup_by(|a, b| a.0 == b.0);
            let entries: String = shapes.iter().map(|(_, text)| format!("  \"{text}\": {{}}\n")).collect();
            let table = runtime(&format!("version: 1\nchannels:\n{entries}"), &[]).channels;
            for name in &names {
                let fits = |text: &&String| Pattern::channel(text).unwrap().matches(name).is_some();
                let most = shapes.iter().map(|(_, text)| *text).filter(fits).map(|text| {
                    let pattern = Pattern::channel(text).unwrap();
                    (pattern.is_exact(), pattern.literal_len())
                }).max();
                let found = table.resolve(name).map(|(_, plan)| (plan.pattern.is_exact(), plan.pattern.literal_len()));
                prop_assert_eq!(found, most);
            }
        }
    }
}

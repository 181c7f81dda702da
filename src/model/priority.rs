//! How important a message is for a client that cannot get everything at once.

use super::json::{self, Json};

/// The priority of an event: the higher it is, the earlier the event is written and the later it is dropped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// Before all others.
    High,
    /// The default.
    #[default]
    Medium,
    /// After all others.
    Low,
}

impl Priority {
    /// Every priority with its word, what matters most first.
    pub const ALL: [(&'static str, Priority); 3] = [("high", Priority::High), ("medium", Priority::Medium), ("low", Priority::Low)];

    /// The priority in an event's metadata: its member `priority`. Other words than those of [`Priority::ALL`] are ignored.
    pub fn of(metadata: Option<&Json>) -> Self {
        let word = metadata.and_then(|metadata| json::member(metadata.as_str(), "priority")).and_then(json::as_text);
        word.and_then(|word| Self::ALL.into_iter().find(|(known, _)| *known == word)).map(|(_, priority)| priority).unwrap_or_default()
    }

    /// Its word.
    pub fn as_str(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_read_and_anything_else_is_medium() {
        let of = |text: &str| Priority::of(Some(&Json::trusted(text.to_owned())));
        for (word, priority) in Priority::ALL {
            assert_eq!((of(&format!("{{\"priority\":\"{word}\"}}")), priority.as_str()), (priority, word));
        }
        for other in ["{\"priority\":\"urgent\"}", "{\"priority\":1}", "{}", "[]", "null", "\"high\""] {
            assert_eq!(of(other), Priority::Medium, "{other}");
        }
        assert_eq!(Priority::of(None), Priority::Medium);
    }
}

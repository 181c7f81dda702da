//! References: `$conn.id` is a root and a path below it. Lists the roots and their members, and explains why a text is not a
//! reference.

use std::fmt;

/// What a reference starts from. The configuration decides which roots are allowed where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Root {
    /// `$.x`: the message.
    Message,
    /// `$raw`: the frame as it came.
    Raw,
    /// `$type`
    Type,
    /// `$data`
    Data,
    /// `$conn.x`
    Conn,
    /// `$query.x`
    Query,
    /// `$path.x`
    Path,
    /// `$header.x`
    Header,
    /// `$cookie.x`
    Cookie,
    /// `$event.x`
    Event,
    /// `$channel`: the channel's name; `$channel.x`: what a capture of its pattern holds.
    Channel,
    /// `$sub.x`
    Sub,
    /// `$recovery.x`: what a subscription that gave its position has missed.
    Recovery,
    /// `$messages`: the messages of a batch, as a list.
    Messages,
    /// `$result.x`
    Result,
    /// `$error.x`
    Error,
    /// `$now`: UTC text.
    Now,
    /// `$now_ms`: milliseconds since the epoch.
    NowMs,
    /// `$uuid`: a new version 4 UUID.
    Uuid,
    /// `$random`: twelve random characters of a–z and 0–9.
    Random,
}

impl Root {
    /// Every root with its name; the message's is the empty one.
    pub const ALL: [(&'static str, Root); 20] = [
        ("", Root::Message),
        ("raw", Root::Raw),
        ("type", Root::Type),
        ("data", Root::Data),
        ("conn", Root::Conn),
        ("query", Root::Query),
        ("path", Root::Path),
        ("header", Root::Header),
        ("cookie", Root::Cookie),
        ("event", Root::Event),
        ("channel", Root::Channel),
        ("sub", Root::Sub),
        ("recovery", Root::Recovery),
        ("messages", Root::Messages),
        ("result", Root::Result),
        ("error", Root::Error),
        ("now", Root::Now),
        ("now_ms", Root::NowMs),
        ("uuid", Root::Uuid),
        ("random", Root::Random),
    ];

    /// Whether each use creates a new value, which has no members.
    pub fn is_scalar(self) -> bool {
        matches!(self, Root::Raw | Root::Type | Root::Now | Root::NowMs | Root::Uuid | Root::Random)
    }

    /// The fixed set of names that may follow, where there is one.
    pub fn fields(self) -> Option<&'static [&'static str]> {
        match self {
            Root::Conn => Some(&["id", "protocol", "user", "session", "ip", "opened", "state"]),
            Root::Event => Some(&[
                "id", "type", "data", "channel", "offset", "epoch", "time", "time_ms", "from", "user", "session", "source", "metadata",
            ]),
            Root::Sub => Some(&["channel", "key", "meta", "offset", "epoch"]),
            Root::Recovery => Some(&["recovered", "missed", "offset", "epoch"]),
            Root::Error => Some(&["code", "message", "data", "retry_after"]),
            _ => None,
        }
    }
}

/// A reference: a root and a path below it.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Where it starts.
    pub root: Root,
    /// Member names and array indexes.
    pub path: Box<[Box<str>]>,
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Root::ALL.iter().find(|(_, root)| *root == self.root).map_or("", |(name, _)| name);
        write!(f, "${name}")?;
        self.path.iter().try_for_each(|step| write!(f, ".{step}"))
    }
}

/// Why a text is not a reference or not a text template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// `$nmae`
    #[error("unknown reference `${0}`")]
    UnknownRoot(String),
    /// `$conn.nmae`
    #[error("`${root}` has no `{field}`")]
    UnknownField {
        /// The root's name.
        root: &'static str,
        /// What was written.
        field: String,
        /// What there is.
        known: &'static [&'static str],
    },
    /// `$query` alone, or `$now.x`.
    #[error("{0}")]
    Shape(String),
    /// `{` without `}`.
    #[error("`{{` without `}}`; a literal brace is written `{{{{`")]
    OpenBrace,
    /// `{name}` without `$`.
    #[error("`{{{0}}}` is not a reference; write `{{${0}}}`, or `{{{{` for a literal brace")]
    NotAReference(String),
}

impl Reference {
    /// Parses `$.a.b`, `$conn.id`, `$now`, ….
    pub fn parse(text: &str) -> Result<Self, Error> {
        let body = text.strip_prefix('$').ok_or_else(|| Error::NotAReference(text.into()))?;
        let mut steps = body.split('.');
        let name = steps.next().unwrap_or_default();
        let (_, root) = *Root::ALL.iter().find(|(known, _)| *known == name).ok_or_else(|| Error::UnknownRoot(name.into()))?;
        // A lone `$` or `$.` is the message itself.
        let path: Box<[Box<str>]> = steps.map(Box::from).collect();
        let path = if root == Root::Message && *path == [Box::from("")] { Box::default() } else { path };
        let valid = |step: &str| !step.is_empty() && step.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '@' | '/'));
        if let Some(bad) = path.iter().find(|step| !valid(step)) {
            return Err(Error::Shape(format!("`{bad}` is not a valid name in `{text}`")));
        }
        if root.is_scalar() && !path.is_empty() {
            return Err(Error::Shape(format!("`${name}` has no members")));
        }
        if matches!(root, Root::Conn | Root::Event | Root::Sub | Root::Recovery | Root::Error | Root::Path | Root::Header | Root::Cookie)
            && path.is_empty()
        {
            return Err(Error::Shape(format!("`${name}` needs a name after it: `${name}.…`")));
        }
        if matches!(root, Root::Path | Root::Header | Root::Cookie | Root::Query | Root::Channel) && path.len() > 1 {
            return Err(Error::Shape(format!("`${name}.{}` is text and has no members", path[0])));
        }
        if let (Some(known), Some(field)) = (root.fields(), path.first())
            && !known.contains(&&**field)
        {
            let (root, _) = Root::ALL[Root::ALL.iter().position(|(_, r)| *r == root).unwrap_or(0)];
            return Err(Error::UnknownField { root, field: field.to_string(), known });
        }
        Ok(Self { root, path })
    }

    /// Whether a scalar of the file is meant as a reference: `$` followed by a letter, a dot or nothing.
    pub fn is_meant(text: &str) -> bool {
        text.strip_prefix('$').is_some_and(|rest| rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_lowercase() || c == '.'))
    }
}

//! What can go wrong with a message, in the words that its sender gets. Every fault of the pipeline is one of these.

use std::sync::Arc;
use std::time::Duration;

use crate::model::PluginName;
use crate::model::json::Json;

/// The kind of a fault. The text of a code is part of the language: `errors:` in a protocol is keyed by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Code {
    /// The frame is not JSON, or nested too deeply.
    InvalidJson,
    /// The message has no type at the place that the protocol names.
    MissingType,
    /// No row matches the message's type.
    UnknownType,
    /// The message or the published data breaks a schema, or the message is more than a script may hold.
    Invalid,
    /// A script refused the message, with a reason.
    Rejected,
    /// The sender is over a rate limit, or caused too many script calls that exceeded their budgets. Says when to try again.
    RateLimited,
    /// No pattern allows this channel, or it is not open to this sender.
    UnknownChannel,
    /// The named client, user or session does not exist.
    NotFound,
    /// Not allowed.
    Forbidden,
    /// A bound of the connection or the server is reached: subscriptions, channels, members.
    LimitReached,
    /// The store cannot take the event now. Nothing was published.
    Unavailable,
    /// A script failed: the plugin is at fault, not the sender.
    ScriptFailed,
    /// The data that the decision had read changed each time before the decision could be applied.
    Conflict,
}

impl Code {
    /// Every code, for tables and checks.
    pub const ALL: [Code; 13] = [
        Code::InvalidJson,
        Code::MissingType,
        Code::UnknownType,
        Code::Invalid,
        Code::Rejected,
        Code::RateLimited,
        Code::UnknownChannel,
        Code::NotFound,
        Code::Forbidden,
        Code::LimitReached,
        Code::Unavailable,
        Code::ScriptFailed,
        Code::Conflict,
    ];

    /// The code as the language writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid_json",
            Code::MissingType => "missing_type",
            Code::UnknownType => "unknown_type",
            Code::Invalid => "invalid",
            Code::Rejected => "rejected",
            Code::RateLimited => "rate_limited",
            Code::UnknownChannel => "unknown_channel",
            Code::NotFound => "not_found",
            Code::Forbidden => "forbidden",
            Code::LimitReached => "limit_reached",
            Code::Unavailable => "unavailable",
            Code::ScriptFailed => "script_failed",
            Code::Conflict => "conflict",
        }
    }

    /// The message that a sender gets unless the protocol sets another.
    pub fn default_message(self) -> &'static str {
        match self {
            Code::InvalidJson => "invalid JSON",
            Code::MissingType => "missing message type",
            Code::UnknownType => "unknown message type",
            Code::Invalid => "invalid message",
            Code::Rejected => "rejected",
            Code::RateLimited => "rate limit exceeded",
            Code::UnknownChannel => "unknown channel",
            Code::NotFound => "not found",
            Code::Forbidden => "forbidden",
            Code::LimitReached => "limit reached",
            Code::Unavailable => "temporarily unavailable",
            Code::ScriptFailed => "internal error",
            Code::Conflict => "others changed the same data at the same time; try again",
        }
    }

    /// The HTTP status that says the same.
    pub fn status(self) -> u16 {
        match self {
            Code::InvalidJson => 400,
            Code::MissingType | Code::UnknownType | Code::Invalid | Code::Rejected => 422,
            Code::RateLimited => 429,
            Code::UnknownChannel | Code::NotFound => 404,
            Code::Forbidden => 403,
            Code::LimitReached | Code::Unavailable => 503,
            Code::ScriptFailed => 500,
            Code::Conflict => 409,
        }
    }
}

/// One thing that is wrong with a value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// JSON Pointer to the value at fault, within what was checked. Empty for the whole.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// How a fault relates to the budgets of scripts; used to count senders that exceed them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Budget {
    /// A call went over its budget.
    Exceeded {
        /// The plugin.
        plugin: PluginName,
        /// The function that was called.
        function: Arc<str>,
    },
    /// The sender had already caused too many such calls, so this one was not made.
    Spent,
}

/// Why a message was not handled. Nothing of it has happened.
#[derive(Clone, Debug)]
pub struct Fault {
    /// The kind.
    pub code: Code,
    /// A code that a script chose, sent instead of the kind's.
    pub label: Option<String>,
    /// The message for the sender, unless the protocol's `errors:` sets another.
    pub message: String,
    /// More for the sender: `$error.data`.
    pub data: Option<Json>,
    /// What is wrong where, for schemas.
    pub flaws: Vec<Flaw>,
    /// For a rate limit: how long to wait.
    pub retry_after: Option<Duration>,
    /// For the log only: where and why, with file, line and column for scripts.
    pub detail: Option<String>,
    /// Set if the budget of a script was the reason.
    pub budget: Option<Budget>,
}

impl Fault {
    /// A fault with its code's default message.
    pub fn new(code: Code) -> Self {
        Self::with(code, code.default_message())
    }

    /// A fault with a message of its own.
    pub fn with(code: Code, message: impl Into<String>) -> Self {
        Self { code, label: None, message: message.into(), data: None, flaws: Vec::new(), retry_after: None, detail: None, budget: None }
    }

    /// Adds what the log should say besides.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds `$error.data`.
    #[must_use]
    pub fn data(mut self, data: Json) -> Self {
        self.data = Some(data);
        self
    }

    /// The code that the sender gets.
    pub fn code_text(&self) -> &str {
        self.label.as_deref().unwrap_or(self.code.as_str())
    }

    /// Whole seconds to wait, rounded up, at least one.
    pub fn retry_after_s(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_millis().div_ceil(1000).max(1) as u64)
    }
}

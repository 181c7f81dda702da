//! Names of channels, connections, users, sessions and plugins.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// The longest channel name, in bytes.
pub const CHANNEL_BYTES_MAX: usize = 256;

/// The name of a channel: 1 to 256 bytes, no control characters, and no `*`, so that a name is never mistaken for a glob.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ChannelName(Arc<str>);

impl ChannelName {
    /// Checks a text. `None` if it is not a valid channel name.
    pub fn parse(text: &str) -> Option<Self> {
        let fits = !text.is_empty() && text.len() <= CHANNEL_BYTES_MAX;
        (fits && all_may_stand(text)).then(|| Self(text.into()))
    }

    /// The name used for events that are sent directly instead of through a channel: empty, which no channel's name is.
    pub fn direct() -> Self {
        Self("".into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name, shared.
    pub fn shared(&self) -> Arc<str> {
        self.0.clone()
    }
}

impl fmt::Display for ChannelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl serde::Serialize for ChannelName {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl Borrow<str> for ChannelName {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// Whether a text has only characters that a name may have.
fn all_may_stand(text: &str) -> bool {
    // Only what is not ASCII needs to be decoded: there are control characters up to U+009F.
    let ascii = text.bytes().all(|byte| matches!(byte, b' '..=b'~') && byte != b'*');
    ascii || text.chars().all(|c| !c.is_control() && c != '*')
}

/// The longest name of a user or session, in bytes: short enough for a channel of its own.
pub const PRINCIPAL_BYTES_MAX: usize = 200;

/// Whether a text can name a user or session: what a channel's name may hold, and not too long for one.
pub fn is_principal(text: &str) -> bool {
    !text.is_empty() && text.len() <= PRINCIPAL_BYTES_MAX && all_may_stand(text)
}

/// Texts that must not be mistaken for one another.
macro_rules! name {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The name, shared.
            pub fn shared(&self) -> Arc<str> {
                self.0.clone()
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<T: Into<Arc<str>>> From<T> for $name {
            fn from(text: T) -> Self {
                Self(text.into())
            }
        }
    };
}

name!(
    /// The public id of one connection, unique while the server runs and not to be guessed. Empty for an HTTP request.
    ClientId
);
name!(
    /// A user, as a token or a session names it: see [`is_principal`].
    UserId
);
name!(
    /// A session: see [`is_principal`].
    SessionId
);
name!(
    /// A plugin: the name of its file without `.rhai`.
    PluginName
);

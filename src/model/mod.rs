//! The words every other module speaks: names, events, time, JSON text, templates, patterns, faults and close codes.
//! Pure data and pure functions. Knows no runtime, socket, database, web framework or script engine.

pub mod chance;
pub mod clock;
pub mod close;
pub mod codec;
pub mod event;
pub mod fault;
pub mod id;
pub mod json;
pub mod name;
pub mod pattern;
pub mod position;
pub mod priority;
pub mod schema;
pub mod source_location;
pub mod template;
pub mod view;

pub use clock::{Clock, Now};
pub use close::Close;
pub use codec::Codec;
pub use event::{Event, NewEvent, Origin};
pub use fault::{Budget, Code, Fault};
pub use json::Json;
pub use name::{ChannelName, ClientId, PluginName, SessionId, UserId};
pub use position::{Position, RecoveryVerdict};
pub use priority::Priority;
pub use schema::Schema;
pub use source_location::SourceLocation;
pub use template::Template;
pub use view::{ConnView, RequestView, SubView};

//! The log, on standard error: lines for a person, or JSON for a machine.
//!
//! A JSON line always has `timestamp`, `level`, `target` and `message`, and beside them the fields of the event, not nested.

use std::io::IsTerminal;

use tracing::Subscriber;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{EnvFilter, fmt};

/// The filter used if `RUST_LOG` is not set.
const DEFAULT: &str = "info,sqlx=warn";

/// How a line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For a person.
    Text,
    /// One object a line.
    Json,
}

/// Starts logging. `RUST_LOG` sets the filter; a value that is not valid is reported and the default used. Only the first call
/// has an effect.
pub fn init(format: Format) {
    let written = std::env::var("RUST_LOG").unwrap_or_default();
    let (filter, wrong) = filter(&written);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let subscriber = subscriber(format, filter, colour, std::io::stderr);
    if tracing::subscriber::set_global_default(subscriber).is_ok()
        && let Some(error) = wrong
    {
        tracing::warn!(%error, "RUST_LOG cannot be read; logging `{DEFAULT}`");
    }
}

fn filter(written: &str) -> (EnvFilter, Option<String>) {
    if written.trim().is_empty() {
        return (EnvFilter::new(DEFAULT), None);
    }
    match EnvFilter::try_new(written) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(DEFAULT), Some(error.to_string())),
    }
}

fn subscriber<W>(format: Format, filter: EnvFilter, colour: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = fmt().with_env_filter(filter).with_writer(writer);
    match format {
        Format::Text => Box::new(lines.with_ansi(colour).finish()),
        Format::Json => Box::new(lines.json().flatten_event(true).with_current_span(false).with_span_list(false).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format, rust_log: &str, log: impl FnOnce()) -> String {
        let buffer = Buffer::default();
        let writer = buffer.clone();
        let subscriber = subscriber(format, filter(rust_log).0, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, log);
        String::from_utf8(buffer.0.lock().clone()).unwrap()
    }

    #[test]
    fn json_lines_have_one_flat_shape() {
        let text = written(Format::Json, "", || {
            let _span = tracing::info_span!("outer", hidden = 1).entered();
            tracing::info!(target: "tramline::x", port = 3000, name = "a\nb", "listening");
        });
        assert_eq!(text.lines().count(), 1);
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        let keys: Vec<&String> = line.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["timestamp", "level", "message", "port", "name", "target"]);
        assert_eq!((&line["level"], &line["message"], &line["port"]), (&"INFO".into(), &"listening".into(), &3000.into()));
    }

    #[test]
    fn the_default_is_info_and_less_of_the_database() {
        let text = written(Format::Text, "  ", || {
            tracing::debug!("hidden");
            tracing::info!("shown");
            tracing::info!(target: "sqlx::query", "hidden");
            tracing::warn!(target: "sqlx::query", "told");
        });
        assert!(text.contains("shown") && text.contains("told") && !text.contains("hidden"), "{text}");
        assert!(!text.contains('\u{1b}'));
    }

    #[test]
    fn rust_log_decides_and_what_cannot_be_read_is_named() {
        assert!(written(Format::Text, "tramline=debug", || tracing::debug!(target: "tramline", "shown")).contains("shown"));
        assert!(filter("tramline=debug").1.is_none());
        assert!(filter("tramline=loud").1.is_some());
    }
}

//! Where one page ended and the next begins, as text that only this server reads. A cursor belongs to one query in one order.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::CursorError;

const VERSION: u8 = 2;
/// Version, order and query.
const HEAD_BYTES: usize = 10;
/// The longest cursor.
const TEXT_BYTES_MAX: usize = 4096;

/// The order of pages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// Oldest first.
    Ascending,
    /// Newest first.
    #[default]
    Descending,
}

/// Whether a text may be a cursor of this server. Whether it belongs to the query is checked when it is used.
pub fn check_cursor(text: &str) -> Result<(), CursorError> {
    open(text).map(drop)
}

/// Writes a cursor: the last key that was returned or skipped.
pub(super) fn write(order: Order, key: i64, question: [u8; 8]) -> String {
    seal(order, &key.to_be_bytes(), question)
}

/// The same for text keys.
pub(super) fn write_text(order: Order, key: &str, question: [u8; 8]) -> String {
    seal(order, key.as_bytes(), question)
}

/// Reads a cursor, which must belong to this query.
pub(super) fn read(text: &str, order: Order, question: [u8; 8]) -> Result<i64, CursorError> {
    let key = key(text, order, question)?;
    key.try_into().map(i64::from_be_bytes).map_err(|_| CursorError::Malformed)
}

/// The same for text keys.
pub(super) fn read_text(text: &str, order: Order, question: [u8; 8]) -> Result<String, CursorError> {
    String::from_utf8(key(text, order, question)?).map_err(|_| CursorError::Malformed)
}

fn seal(order: Order, key: &[u8], question: [u8; 8]) -> String {
    let mut bytes = vec![VERSION, order as u8];
    bytes.extend(question);
    bytes.extend(key);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn open(text: &str) -> Result<Vec<u8>, CursorError> {
    if text.len() > TEXT_BYTES_MAX {
        return Err(CursorError::Malformed);
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| CursorError::Malformed)?;
    if bytes.len() < HEAD_BYTES || bytes[0] != VERSION || bytes[1] > 1 { Err(CursorError::Malformed) } else { Ok(bytes) }
}

fn key(text: &str, order: Order, question: [u8; 8]) -> Result<Vec<u8>, CursorError> {
    let mut bytes = open(text)?;
    let key = bytes.split_off(HEAD_BYTES);
    if bytes[1] != order as u8 || bytes[2..] != question { Err(CursorError::Foreign) } else { Ok(key) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(number in any::<i64>(), name in ".{0,20}", question in any::<[u8; 8]>(), ascending in any::<bool>()) {
            let (order, other) = if ascending { (Order::Ascending, Order::Descending) } else { (Order::Descending, Order::Ascending) };
            let text = write(order, number, question);
            prop_assert_eq!(read(&text, order, question), Ok(number));
            prop_assert_eq!(read(&text, other, question), Err(CursorError::Foreign));
            prop_assert_eq!(read(&text, order, question.map(|byte| !byte)), Err(CursorError::Foreign));
            prop_assert_eq!(read_text(&write_text(order, &name, question), order, question), Ok(name));
        }

        #[test]
        fn no_cursor_panics(text in "[A-Za-z0-9_-]{0,30}|.{0,30}") {
            prop_assert!(read(&text, Order::Descending, [0; 8]).is_err());
            prop_assert!(read_text(&text, Order::Descending, [0; 8]).is_err());
        }
    }
}

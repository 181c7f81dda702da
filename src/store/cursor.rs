//! Where a page ended and the next begins, as text that only this server reads. A cursor belongs to one question in one order.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::CursorError;

const VERSION: u8 = 2;
const BYTES: usize = 18;

/// In which order pages go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Order {
    /// The oldest first.
    Ascending,
    /// The newest first.
    #[default]
    Descending,
}

/// Writes a cursor: the last key that was given or passed over.
pub(super) fn write(order: Order, key: i64, question: [u8; 8]) -> String {
    let mut bytes = [0; BYTES];
    bytes[0] = VERSION;
    bytes[1] = order as u8;
    bytes[2..10].copy_from_slice(&key.to_be_bytes());
    bytes[10..].copy_from_slice(&question);
    URL_SAFE_NO_PAD.encode(bytes)
}

/// Reads a cursor that must belong to this question.
pub(super) fn read(text: &str, order: Order, question: [u8; 8]) -> Result<i64, CursorError> {
    let mut bytes = [0; BYTES];
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).map_err(|_| CursorError::Malformed)?;
    if length != BYTES || bytes[0] != VERSION || bytes[1] > 1 {
        return Err(CursorError::Malformed);
    }
    if bytes[1] != order as u8 || bytes[10..] != question {
        return Err(CursorError::Foreign);
    }
    Ok(i64::from_be_bytes(std::array::from_fn(|i| bytes[2 + i])))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_was_written_is_read(key in any::<i64>(), question in any::<[u8; 8]>(), ascending in any::<bool>()) {
            let (order, other) = if ascending { (Order::Ascending, Order::Descending) } else { (Order::Descending, Order::Ascending) };
            let text = write(order, key, question);
            prop_assert_eq!(read(&text, order, question), Ok(key));
            prop_assert_eq!(read(&text, other, question), Err(CursorError::Foreign));
            prop_assert_eq!(read(&text, order, question.map(|byte| !byte)), Err(CursorError::Foreign));
        }

        #[test]
        fn no_cursor_panics(text in "[A-Za-z0-9_-]{0,30}|.{0,30}") {
            prop_assert!(read(&text, Order::Descending, [0; 8]).is_err());
        }
    }
}

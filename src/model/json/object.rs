//! Writes an object member by member and notes their positions, so that the object need not be read again to find them.

use super::{Index, Json, push_string};

/// An object in the making.
#[derive(Debug)]
pub struct ObjectWriter {
    out: String,
    index: Index,
}

impl ObjectWriter {
    /// An empty object that will have about so many bytes.
    pub fn with_capacity(bytes: usize) -> Self {
        let mut out = String::with_capacity(bytes);
        out.push('{');
        Self { out, index: Index::of_object() }
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> usize {
        self.out.len()
    }

    /// A member of another object, as it stands there: the key with its quotes, and the value.
    pub fn copy(&mut self, quoted: &str, value: &str) {
        let (key, value_from) = self.begin(|out| out.push_str(quoted));
        self.out.push_str(value);
        self.index.add(key, quoted.contains('\\'), (value_from, self.out.len()));
    }

    /// A member whose value `write` appends as JSON. If that fails the object must be thrown away.
    pub fn write<E>(&mut self, name: &str, write: impl FnOnce(&mut String) -> Result<(), E>) -> Result<(), E> {
        let (key, value_from) = self.begin(|out| push_string(out, name));
        write(&mut self.out)?;
        let escaped = key.1 - key.0 != name.len() + 2;
        self.index.add(key, escaped, (value_from, self.out.len()));
        Ok(())
    }

    /// Writes a key. Returns its position and where its value begins.
    fn begin(&mut self, key: impl FnOnce(&mut String)) -> ((usize, usize), usize) {
        if self.out.len() > 1 {
            self.out.push(',');
        }
        let from = self.out.len();
        key(&mut self.out);
        let to = self.out.len();
        self.out.push(':');
        ((from, to), to + 1)
    }

    /// The object and its index.
    pub fn finish(mut self) -> (Json, Index) {
        self.out.push('}');
        // It may be kept for long, and is counted by its length.
        self.out.shrink_to_fit();
        (Json::trusted(self.out), self.index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_found_by_its_index() {
        let mut writer = ObjectWriter::with_capacity(8);
        writer.copy(r#""a\u0062""#, "[1, 2]");
        let value = |out: &mut String| {
            push_string(out, "x");
            Ok::<(), ()>(())
        };
        writer.write("c\n", value).unwrap();
        writer.copy(r#""d""#, "3");
        let (json, index) = writer.finish();
        assert_eq!(json.as_str(), r#"{"a\u0062":[1, 2],"c\n":"x","d":3}"#);
        for (key, value) in [("ab", Some("[1, 2]")), ("c\n", Some("\"x\"")), ("d", Some("3")), ("e", None)] {
            assert_eq!(index.member(json.as_str(), key).ok().flatten(), value, "{key}");
        }
        let mut many = ObjectWriter::with_capacity(0);
        (0..100).for_each(|n| many.copy(&format!("\"{n}\""), "0"));
        let (json, index) = many.finish();
        assert!(index.member(json.as_str(), "99").is_err());
        assert_eq!(crate::model::json::get_indexed(json.as_str(), &index, &["99"]), Some("0"));
    }
}

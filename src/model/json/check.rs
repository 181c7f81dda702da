//! Whether a text is JSON, in one pass over its bytes: nothing built, no recursion, strings eight bytes at a time. On the way it
//! notes the positions of the members of the outermost object. It only says yes or no; a slower parser explains why not.

use std::ops::Range;

use super::DEPTH_MAX;

/// How many members an [`Index`] holds, which moves with its message. Messages have few; an object with more is searched.
const INDEXED: usize = 12;

// One bit a level.
const _: () = assert!(DEPTH_MAX == u64::BITS as usize);

/// The positions of an object's members in its text, so that one is found without walking over the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    members: [Member; INDEXED],
    count: u8,
    /// Whether the text is an object and all its members are here.
    complete: bool,
}

/// Where a member stands in the text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Member {
    key_at: u32,
    /// With its quotes.
    key_len: u16,
    /// Whether the key has escapes.
    escaped: bool,
    value_at: u32,
    value_len: u32,
}

impl Member {
    const NONE: Self = Self { key_at: 0, key_len: 0, escaped: false, value_at: 0, value_len: 0 };

    fn key(&self) -> Range<usize> {
        self.key_at as usize..self.key_at as usize + usize::from(self.key_len)
    }

    fn value(&self) -> Range<usize> {
        self.value_at as usize..self.value_at as usize + self.value_len as usize
    }
}

/// A key as it is read.
#[derive(Clone, Copy, Default)]
struct Key {
    from: usize,
    to: usize,
    escaped: bool,
}

impl Index {
    /// The index of a text that was not indexed: every member is searched for.
    pub const NONE: Self = Self { members: [Member::NONE; INDEXED], count: 0, complete: false };

    /// The index of a text that is known to be JSON.
    pub fn of(text: &str) -> Self {
        indexed(text).unwrap_or_default()
    }

    /// The index of an empty object, for one that is being written.
    pub(super) fn of_object() -> Self {
        Self { complete: true, ..Self::default() }
    }

    /// One more member: where its key stands, with its quotes, whether that has escapes, and where its value stands.
    pub(super) fn add(&mut self, (from, to): (usize, usize), escaped: bool, value: (usize, usize)) {
        self.push(Key { from, to, escaped }, value);
    }

    /// The members in order, as [`super::members`] gives them; `None` where they must be searched for.
    pub(super) fn members<'a>(&'a self, text: &'a str) -> Option<impl Iterator<Item = (&'a str, &'a str)>> {
        let both = |member: &Member| Some((text.get(member.key())?, text.get(member.value())?));
        self.complete.then(|| self.members[..usize::from(self.count)].iter().filter_map(both))
    }

    fn push(&mut self, key: Key, value: (usize, usize)) {
        let member = || {
            let (key_at, key_len) = (key.from.try_into().ok()?, (key.to - key.from).try_into().ok()?);
            let (value_at, value_len) = (value.0.try_into().ok()?, (value.1 - value.0).try_into().ok()?);
            Some(Member { key_at, key_len, escaped: key.escaped, value_at, value_len })
        };
        match (self.members.get_mut(usize::from(self.count)), member()) {
            (Some(place), Some(member)) => {
                *place = member;
                self.count += 1;
            }
            _ => self.complete = false,
        }
    }

    /// One member of the indexed object; `Err` if it must be searched for. Of two equal keys the last one counts.
    pub(super) fn member<'a>(&self, text: &'a str, key: &str) -> Result<Option<&'a str>, NotIndexed> {
        if !self.complete {
            return Err(NotIndexed);
        }
        let is_this = |member: &&Member| {
            let quoted = member.key();
            if member.escaped {
                text.get(quoted).is_some_and(|quoted| super::key_is(quoted, key))
            } else {
                text.as_bytes().get(quoted.start + 1..quoted.end - 1) == Some(key.as_bytes())
            }
        };
        let found = self.members[..usize::from(self.count)].iter().rev().find(is_this);
        Ok(found.and_then(|member| text.get(member.value())))
    }
}

/// The value is not an object, or has too many members.
pub(super) struct NotIndexed;

/// Whether a text is JSON and not too deep.
pub(super) fn is_json(text: &str) -> bool {
    walk(text.as_bytes(), |_, _| ()).is_some()
}

/// The same, with the positions of its members if it is an object.
pub(super) fn indexed(text: &str) -> Option<Index> {
    let bytes = text.as_bytes();
    let mut index = Index { complete: bytes.get(skip_space(bytes, 0)) == Some(&b'{'), ..Index::default() };
    walk(bytes, |key, value| index.push(key, value))?;
    Some(index)
}

/// `None` if the text is not JSON or nests too deep. `member` is called for each member of the outermost object.
fn walk(text: &[u8], mut member: impl FnMut(Key, (usize, usize))) -> Option<()> {
    // What is open, the innermost in the lowest bit: 1 is an object, 0 an array.
    let (mut open, mut depth) = (0u64, 0usize);
    let (mut key, mut value_at) = (Key::default(), 0);
    let mut at = skip_space(text, 0);
    loop {
        // A value begins here.
        if depth == 1 {
            value_at = at;
        }
        let first = *text.get(at)?;
        let mut closes = false;
        match first {
            b'"' => at = string_end(text, at)?,
            b'{' | b'[' => {
                if depth == DEPTH_MAX {
                    return None;
                }
                depth += 1;
                open = open << 1 | u64::from(first == b'{');
                at = skip_space(text, at + 1);
                // The closing bracket is the opening one plus two.
                closes = *text.get(at)? == first + 2;
                if !closes {
                    if first == b'{' {
                        (key, at) = key_end(text, at, key, depth)?;
                    }
                    continue;
                }
            }
            b't' => at = literal_end(text, at, b"true")?,
            b'f' => at = literal_end(text, at, b"false")?,
            b'n' => at = literal_end(text, at, b"null")?,
            _ => at = number_end(text, at)?,
        }
        // A value has ended here, or an empty container is about to.
        loop {
            if !closes {
                if depth == 0 {
                    return (skip_space(text, at) == text.len()).then_some(());
                }
                if depth == 1 && open == 1 {
                    member(key, (value_at, at));
                }
                at = skip_space(text, at);
            }
            let in_object = open & 1 == 1;
            match *text.get(at)? {
                b',' if !closes => {
                    at = skip_space(text, at + 1);
                    if in_object {
                        (key, at) = key_end(text, at, key, depth)?;
                    }
                    break;
                }
                b'}' if in_object => {}
                b']' if !in_object => {}
                _ => return None,
            }
            closes = false;
            depth -= 1;
            open >>= 1;
            at += 1;
        }
    }
}

/// Reads a key and its colon: where the outermost object's key stands, and where the value begins.
fn key_end(text: &[u8], from: usize, outermost: Key, depth: usize) -> Option<(Key, usize)> {
    if *text.get(from)? != b'"' {
        return None;
    }
    let stop = skip_plain(text, from + 1);
    let escaped = *text.get(stop)? != b'"';
    let to = if escaped { string_end(text, from)? } else { stop + 1 };
    let colon = skip_space(text, to);
    (*text.get(colon)? == b':').then(|| (if depth == 1 { Key { from, to, escaped } } else { outermost }, skip_space(text, colon + 1)))
}

/// The index after the string that begins at `at`.
fn string_end(text: &[u8], at: usize) -> Option<usize> {
    let mut at = at + 1;
    loop {
        at = skip_plain(text, at);
        match *text.get(at)? {
            b'"' => return Some(at + 1),
            b'\\' => match *text.get(at + 1)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => at += 2,
                b'u' if text.get(at + 2..at + 6)?.iter().all(u8::is_ascii_hexdigit) => at += 6,
                _ => return None,
            },
            _ => return None,
        }
    }
}

fn number_end(text: &[u8], mut at: usize) -> Option<usize> {
    let digits = |from: usize| {
        let count = text[from.min(text.len())..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        (count > 0).then_some(from + count)
    };
    if text.get(at) == Some(&b'-') {
        at += 1;
    }
    at = if text.get(at) == Some(&b'0') { at + 1 } else { digits(at)? };
    if text.get(at) == Some(&b'.') {
        at = digits(at + 1)?;
    }
    if matches!(text.get(at), Some(b'e' | b'E')) {
        let signed = matches!(text.get(at + 1), Some(b'+' | b'-'));
        at = digits(at + 1 + usize::from(signed))?;
    }
    Some(at)
}

fn literal_end(text: &[u8], at: usize, literal: &[u8]) -> Option<usize> {
    text[at..].starts_with(literal).then_some(at + literal.len())
}

/// The index of the next byte that is not white space.
pub(super) fn skip_space(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

/// A one in every byte of a word.
const EACH: u64 = u64::from_le_bytes([1; 8]);

/// The index of the next quote, backslash or control character: the bytes that a JSON string must escape.
pub(super) fn skip_plain(text: &[u8], at: usize) -> usize {
    let rest = text.get(at..).unwrap_or_default();
    let (words, tail) = rest.as_chunks::<8>();
    for (n, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        // Sets the highest bit of the first byte that is less, and of no byte before it.
        let less = |word: u64, than: u64| word.wrapping_sub(EACH * than) & !word;
        let same = |byte: u8| less(word ^ (EACH * u64::from(byte)), 1);
        let found = (less(word, 0x20) | same(b'"') | same(b'\\')) & (EACH << 7);
        if found != 0 {
            return at + n * 8 + found.trailing_zeros() as usize / 8;
        }
    }
    let end = tail.iter().position(|byte| matches!(byte, b'"' | b'\\' | ..0x20)).unwrap_or(tail.len());
    text.len() - tail.len() + end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::model::json::{members, slow_check};

    /// Texts that are nearly JSON.
    fn nearly_json() -> impl Strategy<Value = String> {
        let token = prop_oneof![
            4 => "[\\[\\]{},:]",
            2 => "\"[a-c\\\\]{0,3}\"",
            1 => "\"(\\\\[\"\\\\/bfnrtux]|\\\\u[0-9a-gD]{4}|[ -~é\u{1}\u{7f}])*\"",
            2 => "-?(0|[1-9][0-9]{0,2})(\\.[0-9]{0,2})?([eE][+-]?[0-9]{0,2})?",
            1 => "true|false|null|nul|tru|-|01|\\.5|\"",
            1 => "[ \t\n\r]{1,2}",
        ];
        prop::collection::vec(token, 0..14).prop_map(|tokens| tokens.concat())
    }

    /// JSON with one byte changed, put in or left out.
    fn damaged() -> impl Strategy<Value = String> {
        const TEXT: &str =
            r#" {"a":[1,-2.5e+3,"x\"\u00e9 y"],"b":{"c":null,"d":[true,false,{}]},"a":"a long text without anything in it"} "#;
        (0..TEXT.len(), "[ -~\u{0}]", 0..3usize).prop_map(|(at, with, how)| {
            let (before, after) = TEXT.split_at(at);
            let rest = if how == 0 { after } else { &after[1..] };
            format!("{before}{}{rest}", if how == 2 { "" } else { &with })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn it_says_what_a_real_parser_says(text in nearly_json().boxed().prop_union(damaged().boxed())) {
            prop_assert_eq!(is_json(&text), slow_check(&text).is_ok(), "{}", text);
            prop_assert_eq!(indexed(&text).is_some(), is_json(&text));
        }

        #[test]
        fn an_index_finds_what_a_search_finds(
            text in prop::collection::vec(("a|b|\\\\u0061|c\\\\n|", "1|\"x\"|\\{\"a\":2\\}|\\[\\{\"a\":3\\}\\]|\\{\\}|\\[\\]"), 0..16),
            space in "[ \n]{0,2}",
        ) {
            let members_text: Vec<String> = text.iter().map(|(key, value)| format!("{space}\"{key}\"{space}:{space}{value}{space}")).collect();
            let text = format!("{space}{{{}{space}}}", members_text.join(","));
            let index = indexed(&text).unwrap();
            prop_assert_eq!(index.complete, members_text.len() <= INDEXED);
            for key in ["a", "b", "c\n", "", "none"] {
                let searched = members(&text).filter(|(k, _)| crate::model::json::unquote(k) == key).last().map(|(_, value)| value);
                if let Ok(found) = index.member(&text, key) {
                    prop_assert_eq!(found, searched);
                }
            }
        }

        #[test]
        fn plain_text_ends_where_a_plain_search_ends(text in "[a-zé\u{80}\u{ff}\"\\\\\u{1f} \u{7f}]{0,30}", at in 0..40usize) {
            let found = text.bytes().enumerate().skip(at).find(|(_, byte)| matches!(byte, b'"' | b'\\' | ..0x20));
            prop_assert_eq!(skip_plain(text.as_bytes(), at), found.map_or(text.len(), |(i, _)| i));
        }
    }

    #[test]
    fn only_objects_have_an_index() {
        for text in ["[{\"a\":1}]", "1", " \"a\" ", "{\"a\":"] {
            assert!(indexed(text).is_none_or(|index| index.member(text, "a").is_err()), "{text}");
        }
    }

    #[test]
    fn depth_is_bounded_whatever_is_open() {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let nested = |n: usize| format!("{}1{}", open.repeat(n), close.repeat(n));
            assert!(is_json(&nested(DEPTH_MAX)) && !is_json(&nested(DEPTH_MAX + 1)));
        }
        let empty = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(is_json(&empty(DEPTH_MAX)) && !is_json(&empty(DEPTH_MAX + 1)));
    }
}

//! An object of which a script gets only the members it uses, and which is put together again afterwards: what the script does
//! not look at stays the bytes it was.

use rhai::{Array, Dynamic, ImmutableString, Map};

use super::convert::{self, Room};
use super::wanted::{Members, Part};
use crate::model::Json;
use crate::model::json::{self, Index, ObjectWriter};

/// Room for what a script adds to an object. It grows if more is needed.
const ADDED_BYTES: usize = 128;

/// The members of an object that a script uses, as a map. `None`: it is not an object, or they exceed the bounds of scripts.
pub(super) fn to_map(json: &Json, index: &Index, wanted: &Members) -> Option<Map> {
    if !json.as_str().trim_start().starts_with('{') {
        return None;
    }
    members(json::members_indexed(json.as_str(), index), wanted, &Room::new())
}

fn members<'t>(found: impl Iterator<Item = (&'t str, &'t str)>, wanted: &Members, room: &Room) -> Option<Map> {
    let mut map = Map::new();
    for (quoted, value) in found {
        let member = wanted.find(quoted).map(|at| &wanted[at]);
        if let Some((member, part)) = member.and_then(|member| Some((member, member.read.as_ref()?))) {
            // Of two equal keys the last one counts.
            map.insert(member.name.clone(), part_of(value, part, room)?);
        }
    }
    Some(map)
}

/// The part of a value that a script uses. `None`: it exceeds the bounds of scripts.
fn part_of(value: &str, part: &Part, room: &Room) -> Option<Dynamic> {
    match (part, value.as_bytes().first()) {
        (Part::Members(wanted), Some(b'{')) => members(json::members(value), wanted, room).map(Dynamic::from_map),
        // Of what type it is, is all that is asked.
        (Part::Members(wanted), Some(b'[')) if wanted.is_empty() => Some(Dynamic::from_array(Array::new())),
        (Part::Members(wanted), Some(b'"')) if wanted.is_empty() => Some(Dynamic::from(ImmutableString::new())),
        _ => convert::member(value, room),
    }
}

/// The same for a value by itself. The error says which bound of scripts it exceeds.
pub(super) fn of(json: &Json, part: &Part) -> Result<Dynamic, String> {
    match part {
        Part::Whole => convert::to_dynamic(json),
        Part::Members(_) => part_of(json.as_str().trim_start(), part, &Room::new()).map_or_else(|| convert::to_dynamic(json), Ok),
    }
}

/// The object with the members that a script changed. Members keep their order, new ones come last.
pub(super) fn to_json(map: &Map, json: &Json, index: &Index, wanted: &Members, bytes_max: usize) -> Result<(Json, Index), String> {
    let mut out = ObjectWriter::with_capacity(json.as_str().len() + ADDED_BYTES);
    let write = |out: &mut ObjectWriter, name: &str, value| out.write(name, |out| convert::write_member(out, name, value, bytes_max));
    // A bit for each wanted member that is written.
    let mut written = 0u64;
    for (quoted, value) in json::members_indexed(json.as_str(), index) {
        let Some(at) = wanted.find(quoted).filter(|at| wanted[*at].changed) else {
            out.copy(quoted, value);
            continue;
        };
        let member = &wanted[at];
        match map.get(&member.name) {
            Some(value) if written & 1 << at == 0 => {
                write(&mut out, &member.name, value)?;
                written |= 1 << at;
            }
            // The script removed it, or the key appears twice.
            _ if member.read.is_some() || written & 1 << at != 0 => {}
            _ => out.copy(quoted, value),
        }
    }
    for (at, member) in wanted.iter().enumerate().filter(|(_, member)| member.changed) {
        if let Some(value) = map.get(&member.name).filter(|_| written & 1 << at == 0) {
            write(&mut out, &member.name, value)?;
        }
    }
    // The closing bracket is to come.
    if out.bytes() >= bytes_max { Err(convert::too_large(bytes_max)) } else { Ok(out.finish()) }
}

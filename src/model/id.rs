//! Names of the configuration as small numbers: a name keeps its number as long as the process runs, no matter how often the
//! files are read. So data kept under a number outlives a reload, and a look-up is an index.
//!
//! Names come from files, so there are few; none is ever forgotten.

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};

use parking_lot::RwLock;

/// The numbers of the names of one kind of thing.
#[derive(Debug, Default)]
pub struct Interner(RwLock<Names>);

#[derive(Debug, Default)]
struct Names {
    by_name: HashMap<Arc<str>, u32>,
    names: Vec<Arc<str>>,
}

impl Interner {
    fn id(&self, name: &str) -> u32 {
        if let Some(known) = self.get(name) {
            return known;
        }
        let mut all = self.0.write();
        if let Some(known) = all.by_name.get(name) {
            return *known;
        }
        let (id, name) = (u32::try_from(all.names.len()).unwrap_or(u32::MAX), Arc::<str>::from(name));
        all.names.push(name.clone());
        all.by_name.insert(name, id);
        id
    }

    fn get(&self, name: &str) -> Option<u32> {
        self.0.read().by_name.get(name).copied()
    }

    fn name(&self, id: u32) -> Arc<str> {
        self.0.read().names.get(id as usize).cloned().unwrap_or_default()
    }
}

/// A number that stands for a name.
pub trait Id: Copy + Eq {
    /// Its place in an [`IdMap`].
    fn index(self) -> usize;
    /// The number of a place.
    fn at(index: usize) -> Self;
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $all:ident) => {
        static $all: LazyLock<Interner> = LazyLock::new(Interner::default);

        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(u32);

        impl $name {
            /// The number of a name; assigns one if the name has none yet.
            pub fn of(name: &str) -> Self {
                Self($all.id(name))
            }

            /// The number of a name that has one.
            pub fn known(name: &str) -> Option<Self> {
                $all.get(name).map(Self)
            }

            /// The name.
            pub fn name(self) -> Arc<str> {
                $all.name(self.0)
            }
        }

        impl Id for $name {
            fn index(self) -> usize {
                self.0 as usize
            }

            fn at(index: usize) -> Self {
                Self(u32::try_from(index).unwrap_or(u32::MAX))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.name())
            }
        }
    };
}

id!(
    /// A protocol, by its name.
    ProtocolId, PROTOCOLS
);
id!(
    /// A row, by its place and its condition: `chat.messages.say when $.loud`.
    RowId, ROWS
);
id!(
    /// A channel or pattern of channels, as the configuration writes it.
    PatternId, PATTERNS
);
id!(
    /// A source, by its name.
    SourceId, SOURCES
);

/// Values for some of the ids of one kind.
pub struct IdMap<I, T> {
    entries: Vec<Option<T>>,
    kind: PhantomData<fn(I)>,
}

impl<I: Id, T> IdMap<I, T> {
    /// The value of an id.
    pub fn get(&self, id: I) -> Option<&T> {
        self.entries.get(id.index())?.as_ref()
    }

    /// Sets the value of an id and returns the previous one.
    pub fn insert(&mut self, id: I, value: T) -> Option<T> {
        if self.entries.len() <= id.index() {
            self.entries.resize_with(id.index() + 1, || None);
        }
        self.entries[id.index()].replace(value)
    }

    /// Removes the value of an id.
    pub fn remove(&mut self, id: I) -> Option<T> {
        self.entries.get_mut(id.index())?.take()
    }

    /// The value of an id; creates it if there is none.
    pub fn get_or_insert_with(&mut self, id: I, make: impl FnOnce() -> T) -> &mut T {
        if self.entries.len() <= id.index() {
            self.entries.resize_with(id.index() + 1, || None);
        }
        self.entries[id.index()].get_or_insert_with(make)
    }

    /// The value of an id, mutable.
    pub fn get_mut(&mut self, id: I) -> Option<&mut T> {
        self.entries.get_mut(id.index())?.as_mut()
    }

    /// All ids with a value, in numerical order.
    pub fn iter(&self) -> impl Iterator<Item = (I, &T)> {
        self.entries.iter().enumerate().filter_map(|(index, entry)| Some((I::at(index), entry.as_ref()?)))
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().flatten()
    }
}

impl<I, T> Default for IdMap<I, T> {
    fn default() -> Self {
        Self { entries: Vec::new(), kind: PhantomData }
    }
}

impl<I: Id, T> FromIterator<(I, T)> for IdMap<I, T> {
    fn from_iter<A: IntoIterator<Item = (I, T)>>(all: A) -> Self {
        let mut map = Self::default();
        for (id, value) in all {
            map.insert(id, value);
        }
        map
    }
}

impl<I: Id + fmt::Debug, T: fmt::Debug> fmt::Debug for IdMap<I, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_number() {
        let (a, b) = (SourceId::of("id test a"), SourceId::of("id test b"));
        assert_ne!(a, b);
        assert_eq!((SourceId::of("id test a"), SourceId::known("id test b")), (a, Some(b)));
        assert_eq!((&*a.name(), SourceId::known("id test c")), ("id test a", None));
    }

    #[test]
    fn a_map_has_what_it_was_given() {
        let (a, b) = (RowId::of("id test a"), RowId::of("id test b"));
        let mut map: IdMap<RowId, u8> = [(b, 2)].into_iter().collect();
        assert_eq!((map.get(a), map.get(b)), (None, Some(&2)));
        assert_eq!((map.insert(a, 1), map.insert(b, 3), map.remove(b)), (None, Some(2), Some(3)));
        assert_eq!(map.iter().collect::<Vec<_>>(), [(a, &1)]);
    }
}

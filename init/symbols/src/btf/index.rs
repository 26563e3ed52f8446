//! Types by their names.

use super::{Kind, TypeId, Types};

/// C keeps the names of types in four spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Space {
    /// `NAME`: integers, floating-point numbers, typedefs.
    Plain,
    /// `struct NAME`
    Struct,
    /// `union NAME`
    Union,
    /// `enum NAME`
    Enum,
}

impl Space {
    fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::Int | Kind::Float | Kind::Typedef => Some(Self::Plain),
            Kind::Struct => Some(Self::Struct),
            Kind::Union => Some(Self::Union),
            Kind::Enum | Kind::Enum64 => Some(Self::Enum),
            _ => None,
        }
    }
}

impl Types {
    /// Sorts the types that have names.
    pub(super) fn index(&mut self) {
        let space = |id: &TypeId| {
            self.get(*id).filter(|found| found.name != 0).and_then(|found| Space::of(found.kind))
        };
        let mut by_name: Vec<TypeId> = self.ids().filter(|id| space(id).is_some()).collect();
        by_name.sort_unstable_by(|one, other| {
            let key = |id: &TypeId| (self.name(*id), space(id), *id);
            key(one).cmp(&key(other))
        });
        self.by_name = by_name;
        self.read_end = self.len();
    }

    /// The type of this name; of several the kernel's own, else that of the first module.
    #[must_use]
    pub fn named(&self, space: Space, name: &str) -> Option<TypeId> {
        let key = |id: TypeId| (self.name(id), self.get(id).and_then(|found| Space::of(found.kind)));
        let wanted = (name, Some(space));
        let start = self.by_name.partition_point(|&id| key(id) < wanted);
        self.by_name.get(start).copied().filter(|&id| key(id) == wanted)
    }
}

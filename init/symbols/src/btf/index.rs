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
    /// Sorts the types that have names and came in since the last time into those that are sorted.
    pub(super) fn index(&mut self) {
        // The first eight bytes decide most comparisons without a look at the names.
        let start = |name: &str| {
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(name.bytes()).for_each(|(byte, of_name)| *byte = of_name);
            u64::from_be_bytes(bytes)
        };
        let named = |id: TypeId| {
            let found = self.get(id).filter(|found| found.name != 0)?;
            Space::of(found.kind).map(|_| (start(self.string(found.name)), id))
        };
        let mut new: Vec<(u64, TypeId)> = (self.read_end..self.len()).map(TypeId).filter_map(named).collect();
        let key = |id: TypeId| (self.name(id), self.space(id), id);
        new.sort_unstable_by(|one, other| one.0.cmp(&other.0).then_with(|| key(one.1).cmp(&key(other.1))));
        let mut all = Vec::with_capacity(self.by_name.len().saturating_add(new.len()));
        let mut rest = self.by_name.as_slice();
        for (_, id) in new {
            let (below, above) = rest.split_at(rest.partition_point(|&other| key(other) < key(id)));
            all.extend_from_slice(below);
            all.push(id);
            rest = above;
        }
        all.extend_from_slice(rest);
        self.by_name = all;
        self.read_end = self.len();
    }

    fn space(&self, id: TypeId) -> Option<Space> {
        self.get(id).and_then(|found| Space::of(found.kind))
    }

    /// The type of this name; of several the kernel's own, else that of the first module.
    #[must_use]
    pub fn named(&self, space: Space, name: &str) -> Option<TypeId> {
        let key = |id: TypeId| self.name(id).cmp(name).then_with(|| self.space(id).cmp(&Some(space)));
        let start = self.by_name.partition_point(|&id| key(id).is_lt());
        self.by_name.get(start).copied().filter(|&id| key(id).is_eq())
    }
}

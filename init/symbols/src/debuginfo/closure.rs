//! Which types a file must have so that some types are in it whole.
//!
//! A pointer needs no more of a structure than that there is one: that of `struct device` leads to half
//! of the kernel. Readers find the rest of such a structure in the kernel's own file.

use base::addr::to_usize;

use crate::btf::{Kind, TypeId, Types};

/// How much of a type is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wanted {
    /// Nothing.
    #[default]
    No,
    /// Its name, if it is a structure or union that has one; else all of it.
    Named,
    /// All.
    Whole,
}

/// How much of each type, by its number, is wanted so that `roots` are there.
pub(super) fn of(types: &Types, roots: impl Iterator<Item = TypeId>) -> Vec<Wanted> {
    let mut wanted = vec![Wanted::No; to_usize(types.len().into())];
    let mut open: Vec<(TypeId, Wanted)> = roots.map(|id| (id, Wanted::Whole)).collect();
    // Each type is looked into twice at most.
    while let Some((id, how)) = open.pop() {
        let (Some(found), Some(slot)) = (types.get(id), wanted.get_mut(to_usize(id.0.into()))) else {
            continue;
        };
        let is_structure = matches!(found.kind, Kind::Struct | Kind::Union);
        let how = if is_structure && found.name == 0 { Wanted::Whole } else { how };
        if *slot >= how {
            continue;
        }
        *slot = how;
        match found.kind {
            Kind::Struct | Kind::Union if how == Wanted::Whole => {
                open.extend(found.members().map(|member| (member.of, Wanted::Whole)));
            }
            Kind::Array => open.extend(found.elements().map(|(element, _)| (element, Wanted::Whole))),
            Kind::Prototype => {
                open.push((found.target(), Wanted::Named));
                open.extend(found.parameters().map(|(_, of)| (of, Wanted::Named)));
            }
            Kind::Pointer | Kind::Function => open.push((found.target(), Wanted::Named)),
            Kind::Variable => open.push((found.target(), Wanted::Whole)),
            Kind::Typedef | Kind::Const | Kind::Volatile | Kind::Restrict | Kind::TypeTag => {
                open.push((found.target(), how));
            }
            _ => {}
        }
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Btf;

    #[test]
    fn behind_a_pointer_a_name_is_enough() {
        let mut btf = Btf::default();
        let int = btf.int("int", 4, 1);
        let far = btf.structure("far", 4, &[("x", int, 0)]);
        let pointer = btf.add(2, "", 0, far, &[]);
        let near = btf.structure("near", 8, &[("pointer", pointer, 0)]);
        let alias = btf.add(8, "near_t", 0, near, &[]);
        let unnamed = btf.structure("", 8, &[("inner", alias, 0)]);
        let to_unnamed = btf.add(2, "", 0, unnamed, &[]);
        let row = btf.add(3, "", 0, 0, &[far, int, 2]);
        let of_pointer = btf.structure("of_pointer", 8, &[("p", to_unnamed, 0)]);
        let of_row = btf.structure("of_row", 8, &[("row", row, 0)]);
        let types = Types::parse(&btf.blob()).unwrap();
        let wanted = |root: u32| {
            let wanted = of(&types, [TypeId(root)].into_iter());
            move |id: u32| wanted[usize::try_from(id).unwrap()]
        };
        let through = wanted(of_pointer);
        for (id, expected) in [
            (of_pointer, Wanted::Whole),
            (to_unnamed, Wanted::Whole),
            (unnamed, Wanted::Whole),
            (alias, Wanted::Whole),
            (near, Wanted::Whole),
            (pointer, Wanted::Whole),
            (far, Wanted::Named),
            (int, Wanted::No),
            (row, Wanted::No),
        ] {
            assert_eq!(through(id), expected, "type {id}");
        }
        let inside = wanted(of_row);
        assert_eq!(
            [row, far, int, near].map(inside),
            [Wanted::Whole, Wanted::Whole, Wanted::Whole, Wanted::No]
        );
    }
}

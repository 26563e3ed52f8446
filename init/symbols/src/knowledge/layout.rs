//! Where the members of the kernel's structures lie, looked up by name once.

use super::Knowledge;

/// A member that the kernel's types lack, under any of the names that it has had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's types have no {member} in struct {structure}")]
pub struct Missing {
    /// The structure.
    pub structure: &'static str,
    /// The newest name of the member.
    pub member: &'static str,
}

/// The first of the paths that the structure has.
#[must_use]
pub fn optional(known: &dyn Knowledge, structure: &'static str, paths: &[&'static str]) -> Option<u64> {
    paths.iter().find_map(|path| known.offset(structure, path))
}

/// The same of a member that has to be there.
pub fn required(
    known: &dyn Knowledge,
    structure: &'static str,
    paths: &[&'static str],
) -> Result<u64, Missing> {
    let member = paths.first().copied().unwrap_or_default();
    optional(known, structure, paths).ok_or(Missing { structure, member })
}

/// Structures with the offsets of their members; in brackets those that some kernels lack.
/// Members have had several names.
#[macro_export]
macro_rules! layouts {
    ($($name:ident of $structure:literal {
        $($field:ident: $($path:literal)|+,)*
    } $([ $($some:ident: $($some_path:literal)|+,)* ])?)*) => { $(
        #[doc = concat!("`struct ", $structure, "`")]
        #[derive(Clone, Copy, Debug, Default)]
        #[expect(missing_docs, reason = "the names of the kernel")]
        pub struct $name {
            $(pub $field: u64,)*
            $($(pub $some: Option<u64>,)*)?
        }

        impl $name {
            /// Looks the members up. Fails at the first that has to be there.
            pub fn ask(
                known: &dyn $crate::knowledge::Knowledge,
            ) -> Result<Self, $crate::knowledge::layout::Missing> {
                Ok(Self {
                    $($field: $crate::knowledge::layout::required(known, $structure, &[$($path),+])?,)*
                    $($($some: $crate::knowledge::layout::optional(known, $structure, &[$($some_path),+]),)*)?
                })
            }
        }
    )* };
}

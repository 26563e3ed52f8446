//! Under which name each type is written.
//!
//! A structure has its own name, one without a name that of its typedef (volatility3 looks for
//! `kernel_cap_t`), and one without either is `unnamed_` and its number. Of several of one name the
//! kernel's own has it; behind the names of others stands their number (`NAME.NUMBER`).

use std::collections::BTreeMap;

use crate::btf::{Kind, Type, TypeId, Types};

/// What volatility3 itself calls some types (framework/symbols/native.py).
const RESERVED: [&str; 8] = ["array", "bitfield", "bytes", "enum", "function", "pointer", "string", "void"];
/// Begins the names of types without a name.
const UNNAMED: &str = "unnamed_";

/// The names of types.
#[derive(Debug, Default)]
pub(super) struct Names {
    /// Structures and unions.
    pub(super) structures: BTreeMap<String, TypeId>,
    pub(super) enumerations: BTreeMap<String, TypeId>,
    /// Integers and floating-point numbers.
    pub(super) numbers: BTreeMap<String, TypeId>,
    /// Those that are written under another name than their own.
    renamed: BTreeMap<TypeId, String>,
}

impl Names {
    /// The names of all these types.
    pub(super) fn new(types: &Types) -> Self {
        let mut names = Self::default();
        let (mut aliases, mut unnamed) = (BTreeMap::new(), Vec::new());
        for id in types.ids() {
            let Some(found) = types.get(id) else { continue };
            let name = types.string(found.name);
            match found.kind {
                Kind::Struct | Kind::Union if found.name == 0 => unnamed.push(id),
                Kind::Struct | Kind::Union => names.add(|names| &mut names.structures, types, id, name),
                Kind::Enum | Kind::Enum64 => names.add(|names| &mut names.enumerations, types, id, name),
                Kind::Int | Kind::Float => names.number(types, id, &found),
                Kind::Typedef => {
                    aliases.entry(found.target()).or_insert(name);
                }
                _ => {}
            }
        }
        for id in unnamed {
            let alias = aliases.get(&id).filter(|alias| !names.structures.contains_key(**alias));
            names.add(|names| &mut names.structures, types, id, alias.copied().unwrap_or(""));
        }
        names
    }

    fn number(&mut self, types: &Types, id: TypeId, found: &Type<'_>) {
        let name = types.string(found.name);
        let shape = |found: &Type<'_>| (found.kind, found.size(), found.encoding());
        let known = self.numbers.get(name).and_then(|known| types.get(*known));
        if known.is_none_or(|known| shape(&known) != shape(found)) {
            self.add(|names| &mut names.numbers, types, id, name);
        }
    }

    /// Gives a type the name `want`, or another one if that is none or another type has it.
    fn add(
        &mut self,
        space: impl Fn(&mut Self) -> &mut BTreeMap<String, TypeId>,
        types: &Types,
        id: TypeId,
        want: &str,
    ) {
        let is_taken = space(self).contains_key(want);
        let name = match want {
            want if !is_name(want) => format!("{UNNAMED}{}", id.0),
            want if is_taken => format!("{want}.{}", id.0),
            want => want.to_owned(),
        };
        if name != types.name(id) {
            self.renamed.insert(id, name.clone());
        }
        space(self).insert(name, id);
    }

    /// The name under which a type is written.
    pub(super) fn of<'a>(&'a self, types: &'a Types, id: TypeId) -> &'a str {
        self.renamed.get(&id).map_or_else(|| types.name(id), String::as_str)
    }

    /// The definition of a structure or union that is only declared.
    pub(super) fn defined(&self, types: &Types, declaration: &Type<'_>) -> Option<TypeId> {
        let id = *self.structures.get(types.string(declaration.name))?;
        let kind = if declaration.flag { Kind::Union } else { Kind::Struct };
        types.get(id).is_some_and(|found| found.kind == kind).then_some(id)
    }
}

/// Whether it is a name in C, perhaps of several words. No other name goes out: volatility3 takes `!`
/// for its own, and has types of its own.
fn is_name(text: &str) -> bool {
    let is_letter = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b' ';
    let is_free = !text.starts_with(UNNAMED) && !RESERVED.contains(&text);
    !text.is_empty() && text.bytes().all(is_letter) && is_free
}

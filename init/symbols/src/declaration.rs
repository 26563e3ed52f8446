//! C declarations of variables, turned into types of this kernel.
//!
//! The table of globals was made from other kernels, so every name in a declaration is looked up in
//! the types of this one: a declaration whose types are not there is not believed. Two forms are not
//! C: `struct { a; b; }` is the only structure without a name whose members are called that, and
//! `[#NAME]` has as many elements as the enumeration NAME has enumerators. `[?24|28]` has a length that
//! only the kernel at hand can tell, such as 24 or 28 in others.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::btf::{Kind, Space, TypeId, Types};

#[cfg(test)]
mod tests;

/// Tokens of a declaration, and parentheses in parentheses.
const MAX_TOKENS: usize = 256;
const MAX_DEPTH: u32 = 16;
/// Elements of an array; the largest of the kernel has 65,536.
const MAX_ELEMENTS: i128 = 1 << 24;

/// Why a declaration cannot be of this kernel.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DeclarationError {
    /// A type, enumerator or structure without a name that this kernel does not have, or several of.
    #[error("this kernel has no {0}")]
    Unknown(String),
    /// It is no declaration.
    #[error("no declaration of a variable, at {0:?}")]
    Syntax(String),
}

/// Makes types out of declarations.
#[derive(Debug)]
pub struct Declarations<'t> {
    types: &'t mut Types,
    /// Pointers to types, and types with a qualifier, that are there.
    derived: HashMap<(u8, TypeId), TypeId>,
    /// Declared structures and unions that this kernel has no definition of.
    forwards: HashMap<(Space, String), TypeId>,
    /// Structures, unions and enumerations without a name, by a hash of the names in them; none if there
    /// are several. The names themselves would take many times the memory of the types.
    unnamed: HashMap<u64, Option<TypeId>>,
    /// Enumerations by hashes of the names in them, in order; empty until a declaration wants one.
    enumerations: Vec<(u64, TypeId)>,
}

impl<'t> Declarations<'t> {
    /// Declarations in terms of these types, which grow by what the declarations need.
    pub fn new(types: &'t mut Types) -> Self {
        let mut derived = HashMap::new();
        let mut unnamed = HashMap::new();
        for id in types.ids() {
            let Some(found) = types.get(id) else { continue };
            match found.kind {
                Kind::Pointer | Kind::Const | Kind::Volatile => {
                    derived.entry((code(found.kind), found.target())).or_insert(id);
                }
                Kind::Struct | Kind::Union if found.name == 0 => {
                    let hash = hash(found.members().map(|member| types.string(member.name)));
                    unnamed.entry(hash).and_modify(|one| *one = None).or_insert(Some(id));
                }
                Kind::Enum | Kind::Enum64 if found.name == 0 => {
                    let hash = hash(found.enumerators().map(|(name, _)| types.string(name)));
                    unnamed.entry(hash).and_modify(|one| *one = None).or_insert(Some(id));
                }
                _ => {}
            }
        }
        Self { types, derived, forwards: HashMap::new(), unnamed, enumerations: Vec::new() }
    }

    /// The types, those of declarations among them.
    #[must_use]
    pub fn types(&self) -> &Types {
        self.types
    }

    /// An array of these elements.
    pub fn array(&mut self, element: TypeId, length: u32) -> TypeId {
        self.types.add_array(element, length)
    }

    /// The name and type that a text such as `struct list_head modules` declares.
    pub fn declare(&mut self, text: &str) -> Result<(String, TypeId), DeclarationError> {
        let tokens = tokens(text)?;
        let mut rest = Tokens(&tokens);
        let of = self.specifiers(&mut rest)?;
        let (name, of) = self.declarator(&mut rest, of, 0)?;
        match (name, rest.peek()) {
            (Some(name), None | Some(";")) => Ok((name.to_owned(), of)),
            (_, at) => Err(DeclarationError::Syntax(at.unwrap_or(text).to_owned())),
        }
    }

    /// What stands before the first `*` or name.
    fn specifiers(&mut self, rest: &mut Tokens<'_>) -> Result<TypeId, DeclarationError> {
        let mut qualifiers = Vec::new();
        let mut words: Vec<&str> = Vec::new();
        let mut found = None;
        while let Some(token) = rest.peek() {
            match token {
                "const" => qualifiers.push(Kind::Const),
                "volatile" => qualifiers.push(Kind::Volatile),
                "static" | "extern" | "register" => {}
                "struct" | "union" | "enum" if found.is_none() && words.is_empty() => {
                    rest.next();
                    found = Some(self.tagged(token, rest)?);
                    continue;
                }
                "unsigned" | "signed" | "long" | "short" | "int" | "char" | "_Bool" | "void" | "double"
                | "float"
                    if found.is_none() =>
                {
                    words.push(token);
                }
                _ if found.is_none() && words.is_empty() && is_name(token) => {
                    found = Some(self.named(Space::Plain, token)?);
                }
                _ => break,
            }
            rest.next();
        }
        let mut of = match found {
            Some(found) => found,
            None if words.is_empty() => {
                return Err(DeclarationError::Syntax(rest.peek().unwrap_or_default().to_owned()));
            }
            None if words == ["void"] => TypeId::VOID,
            None => self.named(Space::Plain, &base_type(&words))?,
        };
        for kind in qualifiers {
            of = self.derive(kind, of);
        }
        Ok(of)
    }

    /// The type behind `struct`, `union` or `enum`.
    fn tagged(&mut self, keyword: &str, rest: &mut Tokens<'_>) -> Result<TypeId, DeclarationError> {
        let space = match keyword {
            "struct" => Space::Struct,
            "union" => Space::Union,
            _ => Space::Enum,
        };
        let tag = rest.next().ok_or_else(|| DeclarationError::Syntax(keyword.to_owned()))?;
        if tag == "{" {
            let mut members = Vec::new();
            loop {
                match rest.next() {
                    Some("}") => break,
                    Some(";") => {}
                    // As the generator writes a member without a name.
                    Some("_") => members.push(""),
                    Some(name) => members.push(name),
                    None => return Err(DeclarationError::Syntax("{".to_owned())),
                }
            }
            let found = self.unnamed.get(&hash(members.iter().copied())).copied().flatten();
            let found = found.filter(|id| self.has_members(*id, &members));
            return found
                .ok_or_else(|| DeclarationError::Unknown(format!("{keyword} {{ {} }}", members.join(" "))));
        }
        if let Some(found) = self.types.named(space, tag) {
            return Ok(found);
        }
        if space == Space::Enum {
            return Err(DeclarationError::Unknown(format!("enum {tag}")));
        }
        let key = (space, tag.to_owned());
        if let Some(found) = self.forwards.get(&key) {
            return Ok(*found);
        }
        let name = self.types.add_string(tag);
        let made = self.types.add(Kind::Forward, name, space == Space::Union, TypeId::VOID);
        self.forwards.insert(key, made);
        Ok(made)
    }

    /// What stands from the first `*` on: the name, if there is one, and its type.
    fn declarator<'a>(
        &mut self,
        rest: &mut Tokens<'a>,
        of: TypeId,
        depth: u32,
    ) -> Result<(Option<&'a str>, TypeId), DeclarationError> {
        let below = depth.checked_add(1).filter(|below| *below < MAX_DEPTH);
        let below = below.ok_or_else(|| DeclarationError::Syntax("(".to_owned()))?;
        let mut of = of;
        while rest.peek() == Some("*") {
            rest.next();
            of = self.derive(Kind::Pointer, of);
            while let Some(qualifier @ ("const" | "volatile" | "restrict")) = rest.peek() {
                rest.next();
                match qualifier {
                    "const" => of = self.derive(Kind::Const, of),
                    "volatile" => of = self.derive(Kind::Volatile, of),
                    _ => {}
                }
            }
        }
        let mut name = None;
        // What is in parentheses is of a type that is known only behind them.
        let mut inner = None;
        if rest.peek() == Some("(") && matches!(rest.ahead(1), Some("*" | "(")) {
            rest.next();
            inner = Some(rest.enclosed()?);
        } else if rest.peek().is_some_and(is_name) {
            name = rest.next();
        }
        if rest.peek() == Some("(") {
            rest.next();
            let parameters = self.parameters(rest, below)?;
            of = self.types.add_prototype(of, &parameters);
        }
        let mut dimensions = Vec::new();
        while rest.peek() == Some("[") {
            rest.next();
            let length =
                if rest.peek() == Some("]") { 0 } else { self.length(rest.next().unwrap_or_default())? };
            if rest.next() != Some("]") {
                return Err(DeclarationError::Syntax("[".to_owned()));
            }
            dimensions.push(length);
        }
        for length in dimensions.into_iter().rev() {
            of = self.types.add_array(of, length);
        }
        match inner {
            Some(mut inner) => self.declarator(&mut inner, of, below),
            None => Ok((name, of)),
        }
    }

    /// The types of parameters, behind the opening parenthesis.
    fn parameters(&mut self, rest: &mut Tokens<'_>, depth: u32) -> Result<Vec<TypeId>, DeclarationError> {
        let mut parameters = Vec::new();
        loop {
            match rest.peek() {
                Some(")") => {
                    rest.next();
                    // `(void)` has no parameter.
                    if parameters == [TypeId::VOID] {
                        parameters.clear();
                    }
                    return Ok(parameters);
                }
                Some(",") => {
                    rest.next();
                }
                Some("...") => {
                    rest.next();
                    parameters.push(TypeId::VOID);
                }
                Some(_) => {
                    let of = self.specifiers(rest)?;
                    parameters.push(self.declarator(rest, of, depth)?.1);
                }
                None => return Err(DeclarationError::Syntax("(".to_owned())),
            }
        }
    }

    /// The number of elements that a token stands for.
    fn length(&mut self, token: &str) -> Result<u32, DeclarationError> {
        let unknown = || DeclarationError::Unknown(format!("number of elements {token}"));
        let (name, more) = token.strip_suffix("+1").map_or((token, 0), |name| (name, 1));
        let value = if token.starts_with('?') {
            Some(0)
        } else if token.starts_with(|first: char| first.is_ascii_digit()) {
            token.parse().ok()
        } else if let Some(tag) = token.strip_prefix('#') {
            let found = self.types.named(Space::Enum, tag).and_then(|id| self.types.get(id));
            found.and_then(|found| i128::try_from(found.enumerators().count()).ok())
        } else {
            self.enumerator(name)
        };
        let value = value
            .map(|value| value.saturating_add(more))
            .filter(|value| (0..=MAX_ELEMENTS).contains(value))
            .ok_or_else(unknown)?;
        u32::try_from(value).map_err(|_| unknown())
    }

    /// The value of the first enumerator of a name.
    fn enumerator(&mut self, name: &str) -> Option<i128> {
        let types = &*self.types;
        if self.enumerations.is_empty() {
            let all = types.ids().filter_map(|id| Some((id, types.get(id)?)));
            let names = all.flat_map(|(id, found)| found.enumerators().map(move |(name, _)| (name, id)));
            self.enumerations =
                names.map(|(name, id)| (hash(std::iter::once(types.string(name))), id)).collect();
            self.enumerations.sort_unstable();
        }
        let wanted = hash(std::iter::once(name));
        let start = self.enumerations.partition_point(|(hash, _)| *hash < wanted);
        let namesakes = self.enumerations.iter().skip(start).take_while(|(hash, _)| *hash == wanted);
        let mut all = namesakes.filter_map(|(_, id)| types.get(*id)).flat_map(|found| found.enumerators());
        all.find(|(found, _)| types.string(*found) == name).map(|(_, value)| value)
    }

    /// Whether the members of a structure have these names.
    fn has_members(&self, id: TypeId, names: &[&str]) -> bool {
        let found = self.types.get(id);
        found.is_some_and(|found| {
            found.members().map(|member| self.types.string(member.name)).eq(names.iter().copied())
        })
    }

    fn named(&self, space: Space, name: &str) -> Result<TypeId, DeclarationError> {
        self.types.named(space, name).ok_or_else(|| DeclarationError::Unknown(format!("type {name}")))
    }

    /// The pointer to a type, or the type with a qualifier.
    fn derive(&mut self, kind: Kind, of: TypeId) -> TypeId {
        let types = &mut *self.types;
        *self.derived.entry((code(kind), of)).or_insert_with(|| types.add(kind, 0, false, of))
    }
}

fn hash<'a>(names: impl Iterator<Item = &'a str>) -> u64 {
    let mut hasher = DefaultHasher::new();
    names.for_each(|name| name.hash(&mut hasher));
    hasher.finish()
}

fn code(kind: Kind) -> u8 {
    match kind {
        Kind::Pointer => 0,
        Kind::Const => 1,
        _ => 2,
    }
}

/// The name that BTF has for an integer type, whatever words it is spelled with.
fn base_type(words: &[&str]) -> String {
    let has = |word: &str| words.contains(&word);
    let longs = words.iter().filter(|word| **word == "long").count();
    let unsigned = if has("unsigned") { "unsigned " } else { "" };
    match longs {
        _ if has("char") && has("signed") => "signed char".to_owned(),
        _ if has("char") => format!("{unsigned}char"),
        _ if has("_Bool") || has("double") || has("float") => words.join(" "),
        _ if has("short") => format!("short {unsigned}int"),
        1 => format!("long {unsigned}int"),
        2.. => format!("long long {unsigned}int"),
        _ => format!("{unsigned}int"),
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
}

/// Splits a text into names, numbers and marks.
fn tokens(text: &str) -> Result<Vec<&str>, DeclarationError> {
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    let of_name = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '+' | '|');
    while let Some(first) = rest.chars().next() {
        let len = if rest.starts_with("...") {
            3
        } else if of_name(first) || matches!(first, '#' | '?') {
            rest.char_indices().skip(1).find(|(_, char)| !of_name(*char)).map_or(rest.len(), |(at, _)| at)
        } else if "*()[],;{}".contains(first) {
            1
        } else {
            return Err(DeclarationError::Syntax(rest.to_owned()));
        };
        let (token, behind) = rest.split_at_checked(len).unwrap_or((rest, ""));
        tokens.push(token);
        rest = behind.trim_start();
        if tokens.len() > MAX_TOKENS {
            return Err(DeclarationError::Syntax(rest.to_owned()));
        }
    }
    Ok(tokens)
}

/// The tokens that are left.
#[derive(Clone, Copy)]
struct Tokens<'a>(&'a [&'a str]);

impl<'a> Tokens<'a> {
    fn peek(&self) -> Option<&'a str> {
        self.0.first().copied()
    }

    fn ahead(&self, tokens: usize) -> Option<&'a str> {
        self.0.get(tokens).copied()
    }

    fn next(&mut self) -> Option<&'a str> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    /// The tokens up to the parenthesis that closes, which is taken, too.
    fn enclosed(&mut self) -> Result<Self, DeclarationError> {
        let mut depth = 1_u32;
        for (at, token) in self.0.iter().enumerate() {
            match *token {
                "(" => depth = depth.saturating_add(1),
                ")" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                let (inner, rest) = self.0.split_at_checked(at).unwrap_or_default();
                self.0 = rest.get(1..).unwrap_or_default();
                return Ok(Self(inner));
            }
        }
        Err(DeclarationError::Syntax("(".to_owned()))
    }
}

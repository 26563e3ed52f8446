//! What walkers ask of a kernel: where its symbols are, and how its structures are laid out.
//!
//! A question is answered by the kernel's own tables ([`Read`]), or by answers that were written down
//! while that kernel was healthy ([`Answers`]): a capture then needs neither the memory nor the time
//! to read 10 MiB of tables. Which answers are needed nobody has to list: [`Recorder`] notes what is
//! asked.

pub mod layout;
#[cfg(test)]
mod tests;

use core::cell::RefCell;
use core::fmt;
use std::collections::BTreeMap;

use base::addr::VirtAddr;
use vmcore::kernel::Kernel;

use crate::btf::{Space, TypeId, Types};
use crate::kallsyms::Symbols;

/// Answers that are read; walkers need some hundreds.
const MAX_ANSWERS: usize = 1 << 16;

/// A question about a kernel. Structures may be unions or typedefs, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question<'a> {
    /// The address of a symbol.
    Symbol(&'a str),
    /// Bytes from the start of a structure to a member; the path may lead into members of members.
    Offset(&'a str, &'a str),
    /// Bytes of a structure.
    Size(&'a str),
    /// Bytes of a member.
    MemberSize(&'a str, &'a str),
    /// Elements of a member that is an array.
    Elements(&'a str, &'a str),
    /// The number of a name of an enumeration: its bits, in 64 of them.
    Value(&'a str, &'a str),
}

/// As it is written down.
impl fmt::Display for Question<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => write!(f, "symbol {name}"),
            Self::Offset(structure, path) => write!(f, "offset {structure}.{path}"),
            Self::Size(structure) => write!(f, "size {structure}"),
            Self::MemberSize(structure, path) => write!(f, "size {structure}.{path}"),
            Self::Elements(structure, path) => write!(f, "elements {structure}.{path}"),
            Self::Value(enumeration, name) => write!(f, "value {enumeration}.{name}"),
        }
    }
}

/// Something that answers questions about a kernel.
pub trait Knowledge {
    /// The answer; none where the kernel has no such thing.
    fn ask(&self, question: Question<'_>) -> Option<u64>;

    /// The address of a symbol, with KASLR.
    fn symbol(&self, name: &str) -> Option<VirtAddr> {
        self.ask(Question::Symbol(name)).map(VirtAddr)
    }

    /// Bytes from the start of a structure to a member.
    fn offset(&self, structure: &str, path: &str) -> Option<u64> {
        self.ask(Question::Offset(structure, path))
    }

    /// Bytes of a structure.
    fn size_of(&self, structure: &str) -> Option<u64> {
        self.ask(Question::Size(structure))
    }

    /// Bytes of a member.
    fn member_size(&self, structure: &str, path: &str) -> Option<u64> {
        self.ask(Question::MemberSize(structure, path))
    }

    /// Elements of a member that is an array.
    fn elements(&self, structure: &str, path: &str) -> Option<u64> {
        self.ask(Question::Elements(structure, path))
    }

    /// The number of a name of an enumeration.
    fn value(&self, enumeration: &str, name: &str) -> Option<u64> {
        self.ask(Question::Value(enumeration, name))
    }

    /// From the first of some symbols that is there to the first of others, if that is a part of a
    /// kernel's image.
    fn part(&self, from: &[&str], to: &[&str]) -> Option<(u64, u64)> {
        let first = |names: &[&str]| names.iter().find_map(|name| self.symbol(name));
        let (start, end) = (first(from)?, first(to)?);
        let len = end.0.checked_sub(start.0)?;
        (1..=crate::image::MAX_PART).contains(&len).then_some((start.0, end.0))
    }
}

/// Answers out of the kernel's own tables.
#[derive(Clone, Copy)]
#[expect(missing_debug_implementations, reason = "the table of symbols may be any")]
pub struct Read<'a> {
    /// Its symbols.
    pub symbols: &'a dyn Symbols,
    /// Its types.
    pub types: &'a Types,
}

impl Read<'_> {
    fn structure(&self, name: &str) -> Option<TypeId> {
        let spaces = [Space::Struct, Space::Union, Space::Plain];
        spaces.into_iter().find_map(|space| self.types.named(space, name))
    }

    fn member(&self, structure: &str, path: &str) -> Option<(u64, TypeId)> {
        self.types.member(self.structure(structure)?, path)
    }
}

impl Knowledge for Read<'_> {
    fn ask(&self, question: Question<'_>) -> Option<u64> {
        let types = self.types;
        match question {
            Question::Symbol(name) => self.symbols.find(name).map(|address| address.0),
            Question::Offset(structure, path) => self.member(structure, path).map(|(offset, _)| offset),
            Question::Size(structure) => types.size(self.structure(structure)?),
            Question::MemberSize(structure, path) => types.size(self.member(structure, path)?.1),
            Question::Elements(structure, path) => {
                let (_, of) = self.member(structure, path)?;
                types.get(types.strip(of))?.elements().map(|(_, count)| u64::from(count))
            }
            Question::Value(enumeration, name) => {
                let found = types.get(types.named(Space::Enum, enumeration)?)?;
                let (_, value) = found.enumerators().find(|(at, _)| types.string(*at) == name)?;
                i64::try_from(value).map(i64::cast_unsigned).or_else(|_| u64::try_from(value)).ok()
            }
        }
    }
}

/// Answers that were written down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers(pub BTreeMap<String, u64>);

impl Answers {
    /// As text: a line for each, the number in hex before the question.
    #[must_use]
    pub fn to_text(&self) -> String {
        let lines = self.0.iter().map(|(question, answer)| format!("{answer:x} {question}"));
        lines.collect::<Vec<_>>().join("\n")
    }

    /// Reads the text. A line that is none is left out: what it answered is not known.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let lines = text.lines().take(MAX_ANSWERS).filter_map(|line| {
            let (answer, question) = line.split_once(' ')?;
            Some((question.to_owned(), u64::from_str_radix(answer, 16).ok()?))
        });
        Self(lines.collect())
    }

    /// Writes an answer down.
    pub fn note(&mut self, question: Question<'_>, answer: u64) {
        self.0.insert(question.to_string(), answer);
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Knowledge for Answers {
    fn ask(&self, question: Question<'_>) -> Option<u64> {
        self.0.get(&question.to_string()).copied()
    }
}

/// Writes down the answers of another.
#[expect(missing_debug_implementations, reason = "who answers may be any")]
pub struct Recorder<'a> {
    inner: &'a dyn Knowledge,
    answers: RefCell<BTreeMap<String, u64>>,
}

impl<'a> Recorder<'a> {
    /// One that has been asked nothing yet.
    #[must_use]
    pub fn new(inner: &'a dyn Knowledge) -> Self {
        Self { inner, answers: RefCell::default() }
    }

    /// What was answered so far.
    #[must_use]
    pub fn answers(self) -> Answers {
        Answers(self.answers.into_inner())
    }
}

impl Knowledge for Recorder<'_> {
    fn ask(&self, question: Question<'_>) -> Option<u64> {
        let answer = self.inner.ask(question);
        if let Some(answer) = answer {
            self.answers.borrow_mut().insert(question.to_string(), answer);
        }
        answer
    }
}

/// Where the kernel has its `HZ`: ticks a second. The clock of jiffies has `mult` = nanoseconds of a tick,
/// shifted left by `shift` (kernel/time/jiffies.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticks {
    clock: VirtAddr,
    mult: u64,
    shift: u64,
}

impl Ticks {
    /// Looks it up.
    #[must_use]
    pub fn ask(known: &dyn Knowledge) -> Option<Self> {
        Some(Self {
            clock: known.symbol("clocksource_jiffies")?,
            mult: known.offset("clocksource", "mult")?,
            shift: known.offset("clocksource", "shift")?,
        })
    }

    /// Reads it.
    #[must_use]
    pub fn hertz(&self, kernel: &Kernel<'_>) -> Option<u32> {
        let word = |offset| kernel.read_u32(self.clock.checked_add(offset)?, "clocksource_jiffies").ok();
        let (mult, shift) = (u64::from(word(self.mult)?), word(self.shift)?);
        let tick = mult.checked_shr(shift).filter(|tick| *tick > 0)?;
        let hertz = 1_000_000_000_u64.saturating_add(tick / 2).checked_div(tick)?;
        u32::try_from(hertz).ok().filter(|hertz| (10..=10_000).contains(hertz))
    }
}

/// The two together.
#[must_use]
pub fn hertz(kernel: &Kernel<'_>, known: &dyn Knowledge) -> Option<u32> {
    Ticks::ask(known)?.hertz(kernel)
}

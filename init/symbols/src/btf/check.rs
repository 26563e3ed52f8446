//! What types must be for those who read them to come to an end, and to be right. It is what the kernel
//! asks of types that it is given (`btf_check_meta()` and `btf_resolve()`, kernel/bpf/btf.c), and that
//! members do not overlap.

use base::addr::to_usize;
use base::fields::Fields;

use vmcore::format::vmcoreinfo::VmcoreInfo;

use super::{BtfError, Kind, Member, Space, Type, TypeId, Types};

/// Types in types; those of kernels are up to 20 deep.
const MAX_HEIGHT: u8 = 32;
/// Bytes of a structure; the largest of the kernel have 4 MiB.
const MAX_SIZE: u32 = 64 << 20;
/// Nothing is aligned to more than a page: this many bits.
const MAX_ALIGNMENT: u64 = 4096 * 8;
/// Bits of fields without a name between two members (`struct ioam6_hdr`), and behind the last one
/// (`struct __kernel_timex`).
const UNNAMED: u64 = 64;
const UNNAMED_LAST: u64 = 512;

/// What is wrong with a type, and the number that shows it.
pub(super) type Fault = (&'static str, u32);

impl Types {
    /// Checks the types from `first` on; those below were checked when they came in.
    pub(super) fn check(&self, first: u32) -> Result<(), (u32, Fault)> {
        let new = || (first..self.len()).map(TypeId);
        let all = |check: &dyn Fn(&Self, Type<'_>) -> Result<(), Fault>| {
            new().try_for_each(|id| match self.get(id) {
                Some(found) => check(self, found).map_err(|fault| (id.0, fault)),
                None => Err((id.0, ("the number", id.0))),
            })
        };
        all(&Self::check_alone)?;
        all(&Self::check_references)?;
        self.check_ends(first, inside)?;
        self.check_ends(first, named)?;
        all(&Self::check_sizes)
    }

    /// Compares sizes and offsets with those that VMCOREINFO has. What only one of them has says
    /// nothing: VMCOREINFO has no names for what a structure lies in.
    pub fn agree(&self, info: &VmcoreInfo) -> Result<(), BtfError> {
        for line in info.to_text().lines() {
            let Some((key, theirs)) = line.split_once('=') else { continue };
            let inner = |prefix: &str| key.strip_prefix(prefix)?.strip_suffix(')');
            let named = |name: &str| {
                let spaces = [Space::Struct, Space::Plain, Space::Union];
                spaces.into_iter().find_map(|space| self.named(space, name))
            };
            let ours = match (inner("SIZE("), inner("OFFSET(").and_then(|path| path.split_once('.'))) {
                (Some(name), _) => named(name).and_then(|id| self.size(id)),
                (_, Some((name, path))) => {
                    named(name).and_then(|id| self.member(id, path)).map(|(offset, _)| offset)
                }
                _ => None,
            };
            let (Some(ours), Ok(theirs)) = (ours, theirs.parse::<u64>()) else { continue };
            if ours != theirs {
                return Err(BtfError::Contradicts { key: base::text::line(key), ours, theirs });
            }
        }
        Ok(())
    }

    /// What can be said of a type by itself.
    fn check_alone(&self, found: Type<'_>) -> Result<(), Fault> {
        use Kind::{
            Array, Const, DeclarationTag, Enum, Enum64, Float, Forward, Function, Int, Pointer, Prototype,
            Restrict, Section, Struct, TypeTag, Typedef, Union, Variable, Volatile,
        };
        let has_name = !self.string(found.name).is_empty();
        match found.kind {
            Int | Forward | Typedef | Function | Variable | Section | Float | DeclarationTag | TypeTag
                if !has_name =>
            {
                return Err(("no name at", found.name));
            }
            Pointer | Array | Const | Volatile | Restrict | Prototype if found.name != 0 => {
                return Err(("a name at", found.name));
            }
            _ => {}
        }
        let size = found.size();
        let fits = match found.kind {
            Int => matches!(size, 1 | 2 | 4 | 8 | 16),
            Float => matches!(size, 2 | 4 | 8 | 12 | 16),
            Enum | Enum64 => matches!(size, 1 | 2 | 4 | 8),
            Struct | Union | Section => size <= MAX_SIZE,
            _ => true,
        };
        if !fits {
            return Err(("the size", size));
        }
        // The place in its bytes and the number of bits: bit fields are members' affair.
        let word = Fields(found.more).u32(0).unwrap_or(0);
        if found.kind == Int && word & 0x00ff_ffff != size.saturating_mul(8) {
            return Err(("the bits", word));
        }
        if found.enumerators().any(|(name, _)| self.string(name).is_empty()) {
            return Err(("an enumerator without a name and the size", size));
        }
        Ok(())
    }

    /// Whether each reference is to what may stand there.
    fn check_references(&self, found: Type<'_>) -> Result<(), Fault> {
        let kind = |id: TypeId| self.get(id).map(|found| found.kind);
        let is_type = |id: TypeId| {
            !matches!(kind(id), Some(Kind::Function | Kind::Variable | Kind::Section | Kind::DeclarationTag))
        };
        let check =
            |id: TypeId, fits: bool| if fits { Ok(()) } else { Err(("a wrong reference to type", id.0)) };
        let target = found.target();
        match found.kind {
            Kind::Function => check(target, kind(target) == Some(Kind::Prototype)),
            Kind::Variable => check(target, target != TypeId::VOID && is_type(target)),
            Kind::Array => {
                let (element, _) = found.elements().unwrap_or_default();
                let index = TypeId(Fields(found.more).u32(4).unwrap_or(0));
                check(element, element != TypeId::VOID && is_type(element))?;
                check(index, kind(self.strip(index)) == Some(Kind::Int))
            }
            Kind::Struct | Kind::Union => found
                .members()
                .try_for_each(|member| check(member.of, member.of != TypeId::VOID && is_type(member.of))),
            Kind::Prototype => {
                check(target, is_type(target))?;
                found.parameters().try_for_each(|(_, of)| check(of, is_type(of)))
            }
            Kind::Section => found
                .rows(12)
                .filter_map(|row| row.u32(0).map(TypeId))
                .try_for_each(|id| check(id, matches!(kind(id), Some(Kind::Variable | Kind::Function)))),
            Kind::DeclarationTag => Ok(()),
            _ => check(target, is_type(target)),
        }
    }

    /// Whether no type leads back to itself by what `next` says that it leads to, nor further than
    /// types do.
    fn check_ends(&self, first: u32, next: fn(Type<'_>, &mut Vec<TypeId>)) -> Result<(), (u32, Fault)> {
        const ON_THE_WAY: u8 = u8::MAX;
        let slot = |id: TypeId| id.0.checked_sub(first).map(|number| to_usize(number.into()));
        let mut heights = vec![0_u8; to_usize(self.len().saturating_sub(first).into())];
        let (mut way, mut below) = (Vec::new(), Vec::new());
        for id in (first..self.len()).map(TypeId) {
            way.push((id, false));
            while let Some((id, is_done)) = way.pop() {
                let Some(height) = slot(id).and_then(|slot| heights.get(slot).copied()) else { continue };
                let fault = |what| Err((id.0, (what, id.0)));
                match (is_done, height) {
                    (true, _) | (false, 0) => {}
                    (false, ON_THE_WAY) => return fault("a way back to itself, type"),
                    (false, _) => continue,
                }
                below.clear();
                if let Some(found) = self.get(id) {
                    next(found, &mut below);
                }
                // Those from before this blob have none.
                let of = |id: &TypeId| slot(*id).map_or(Some(0), |slot| heights.get(slot).copied());
                let is_known = |id: &TypeId| slot(*id).is_none() || !matches!(of(id), Some(0 | ON_THE_WAY));
                let height = if is_done || below.iter().all(is_known) {
                    below.iter().filter_map(of).max().unwrap_or(0).saturating_add(1)
                } else {
                    way.push((id, true));
                    way.extend(below.iter().map(|id| (*id, false)));
                    ON_THE_WAY
                };
                if height != ON_THE_WAY && height > MAX_HEIGHT {
                    return fault("too many types in it, type");
                }
                if let Some(slot) = slot(id).and_then(|slot| heights.get_mut(slot)) {
                    *slot = height;
                }
            }
        }
        Ok(())
    }

    /// Whether what lies in a type fits into it.
    fn check_sizes(&self, found: Type<'_>) -> Result<(), Fault> {
        match found.kind {
            Kind::Array => {
                let (element, length) = found.elements().unwrap_or_default();
                let bytes = self.size(element).and_then(|size| size.checked_mul(length.into()));
                match bytes {
                    Some(bytes) if bytes <= u32::MAX.into() => Ok(()),
                    _ => Err(("the number of elements", length)),
                }
            }
            Kind::Struct | Kind::Union => self.check_members(found),
            _ => Ok(()),
        }
    }

    /// Members follow each other, and between them is what the alignment of the next one asks for.
    fn check_members(&self, found: Type<'_>) -> Result<(), Fault> {
        let bits = u64::from(found.size()).saturating_mul(8);
        let is_union = found.kind == Kind::Union;
        let mut end = 0_u64;
        for member in found.members() {
            let start = u64::from(member.bit);
            let len = self.member_bits(member)?;
            let behind = start.saturating_add(len);
            let begins = if is_union { start == 0 } else { is_padding(end, start, UNNAMED) };
            if !begins || behind > bits {
                return Err(("a member at bit", member.bit));
            }
            end = if is_union { end.max(behind) } else { behind };
        }
        if is_padding(end, bits, UNNAMED_LAST) { Ok(()) } else { Err(("the size", found.size())) }
    }

    fn member_bits(&self, member: Member) -> Result<u64, Fault> {
        let len = self.size(member.of).ok_or(("a member without a size, of type", member.of.0))?;
        let len = len.saturating_mul(8);
        match member.bits {
            0 if !member.bit.is_multiple_of(8) => Err(("a member at bit", member.bit)),
            0 => Ok(len),
            field if !self.holds_bits(member.of) || u64::from(field) > len => {
                Err(("a bit field of bits", field.into()))
            }
            field => Ok(field.into()),
        }
    }

    /// Whether a bit field may be of this type.
    fn holds_bits(&self, id: TypeId) -> bool {
        let found = self.get(self.strip(id));
        found.is_some_and(|found| matches!(found.kind, Kind::Int | Kind::Enum | Kind::Enum64))
    }
}

/// Whether what lies between two bits is there so that the second one is aligned: it is shorter than
/// the power of two that the second one is a multiple of. Up to `unnamed` bits may be bit fields
/// without a name, which types do not have.
fn is_padding(from: u64, to: u64, unnamed: u64) -> bool {
    let alignment = to & to.wrapping_neg();
    to.checked_sub(from).is_some_and(|hole| hole <= unnamed || hole < alignment.min(MAX_ALIGNMENT))
}

/// Types that lie in a type.
fn inside(found: Type<'_>, out: &mut Vec<TypeId>) {
    match found.kind {
        Kind::Array => out.extend(found.elements().map(|(element, _)| element)),
        Kind::Struct | Kind::Union => out.extend(found.members().map(|member| member.of)),
        _ if found.kind.is_transparent() => out.push(found.target()),
        _ => {}
    }
}

/// Types that a type is spelled with: C lets a type be named in itself by a structure only.
fn named(found: Type<'_>, out: &mut Vec<TypeId>) {
    out.extend(found.elements().map(|(element, _)| element));
    out.extend(found.parameters().map(|(_, of)| of));
    if found.kind.has_type() && found.kind != Kind::DeclarationTag {
        out.push(found.target());
    }
}

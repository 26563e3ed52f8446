//! `struct page` of the production kernel: where its fields lie and what their bits mean, by
//! VMCOREINFO keys alone.
//!
//! The kernel has changed these facts in 6.3, 6.6, 6.9, 6.10, 6.12 and 7.1, and stable trees carry
//! some of the changes back. Each change came with a key of its own, so the keys decide and a
//! version number never does. This module says what a struct page says; what that means for a dump
//! is `filter`'s.

mod claims;

use crate::format::vmcoreinfo::VmcoreInfo;
use crate::kernel::KernelError;
use base::addr::{to_u64, to_usize};
use base::fields::Fields;
use claims::Claims;

/// Largest order of a compound page that is believed: a 1 GiB hugetlb page of 4 KiB pages, 16 GiB
/// of 64 KiB pages.
const MAX_COMPOUND_ORDER: u32 = 18;
/// Smallest order of a hugetlb page: 64 KiB of 4 KiB pages, on aarch64. A damaged test for hugetlb
/// mostly hits smaller pages, which are the kernel's.
const MIN_HUGETLB_ORDER: u32 = 4;
/// `NR_PAGE_ORDERS` where VMCOREINFO does not tell it: the default since 2.6.
const FREE_ORDERS: u64 = 11;
/// Bits that every page type has set or, since 6.12, a range of values: no mapping count comes
/// near.
const PAGE_TYPE_BASE: u32 = 0xf000_0000;

/// Where the fields of `struct page` lie, and the flags and types in them.
#[derive(Clone, Debug)]
pub struct PageLayout {
    size: usize,
    flags: usize,
    mapping: usize,
    mapcount: usize,
    private: usize,
    refcount: Option<usize>,
    compound: usize,
    order: OrderSource,
    hugetlb: HugetlbTest,
    head: u64,
    bits: Bits,
    types: Types,
    free_orders: u32,
}

/// Masks of page flags; 0 for a flag that the kernel does not tell.
#[derive(Clone, Copy, Debug)]
struct Bits {
    lru: u64,
    private: u64,
    swapcache: u64,
    swapbacked: u64,
    slab: u64,
    hwpoison: u64,
    /// Not told: found in the memory ([`PageLayout::set_reserved`]).
    reserved: u64,
}

/// Tests for page types; `None` for a type that the kernel does not have or tell.
#[derive(Clone, Copy, Debug, Default)]
struct Types {
    buddy: Option<PageType>,
    offline: Option<PageType>,
    slab: Option<PageType>,
    unaccepted: Option<PageType>,
}

/// Where a compound page's order lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OrderSource {
    /// A byte of the second struct page: `compound_order` (4.16 to 6.2), `folio._folio_order` (6.3
    /// to 6.5).
    SecondByte(usize),
    /// The low byte of the second struct page's flags (`folio._flags_1`, 6.6).
    SecondFlags,
}

/// How a hugetlb page is known.
#[derive(Clone, Copy, Debug, PartialEq)]
enum HugetlbTest {
    /// The destructor's number in a byte of the second struct page (to 6.5).
    Destructor { at: usize, value: u8 },
    /// A flag of the second struct page (6.6 to 6.8).
    SecondFlag(u64),
    /// The head's page type (6.9, and stable trees).
    Type(PageType),
    /// The kernel does not tell: it has none, or keeps hugetlb pages of an unknown shape.
    Unknown,
}

/// A value of `page_type`, which shares its place with `_mapcount`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageType {
    /// To 6.11: a type is a cleared bit under set base bits (`PageType()` of
    /// include/linux/page-flags.h).
    Mask(u32),
    /// From 6.12: the top byte is the type (`PGTY_...` of include/linux/page-flags.h), the rest is
    /// its owner's.
    TopByte(u32),
}

impl PageType {
    /// The test for `NUMBER(PAGE_..._MAPCOUNT_VALUE)`, which the kernel prints as a signed 32-bit
    /// number.
    fn new(value: i64) -> Result<Self, KernelError> {
        let absurd =
            || KernelError::Absurd { what: "a page type in VMCOREINFO", value: value.cast_unsigned() };
        let low = i32::try_from(value).map(i32::cast_unsigned).or_else(|_| u32::try_from(value));
        let value = low.map_err(|_| absurd())?;
        if value & PAGE_TYPE_BASE != PAGE_TYPE_BASE {
            return Err(absurd());
        }
        match (value & 0x00ff_ffff, (!value).count_ones()) {
            (0, _) => Ok(Self::TopByte(value)),
            (_, 1) => Ok(Self::Mask(!value)),
            _ => Err(absurd()),
        }
    }

    fn matches(self, mapcount: u32) -> bool {
        match self {
            Self::Mask(bit) => mapcount & (PAGE_TYPE_BASE | bit) == PAGE_TYPE_BASE,
            Self::TopByte(value) => mapcount & 0xff00_0000 == value,
        }
    }
}

/// The fields of one `struct page` that say what the page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// `flags`.
    pub flags: u64,
    /// `mapping`: address space and, in the low bits, its kind.
    pub mapping: u64,
    /// `_mapcount`, as an unsigned number: a count from -1 up, or a page type.
    pub mapcount: u32,
    /// `_refcount`; 0 where the kernel does not tell where it lies.
    pub refcount: u32,
    /// `private`.
    pub private: u64,
    /// `compound_head`, or `compound_info` since 7.1.
    pub compound: u64,
}

/// What the first two struct pages of a compound page say about all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compound {
    /// It has `1 << order` pages; 0 if the order there is one that no page has.
    pub order: u32,
    /// Whether it belongs to hugetlbfs.
    pub hugetlb: bool,
}

/// How a tail page tells its head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadLink {
    /// The address of the head's struct page.
    Pointer(u64),
    /// The head's address is the tail's, with these bits cleared ("mm: rework compound_head() for
    /// power-of-2 sizeof(struct page)", 7.1).
    Mask(u64),
}

impl PageLayout {
    /// Finds the layout. An error means that no page can be told from another: then all are kept.
    pub fn discover(info: &VmcoreInfo) -> Result<Self, KernelError> {
        let size = info.size("page").ok_or_else(|| KernelError::MissingKey("SIZE(page)".into()))?;
        if !(32..=256).contains(&size) || !size.is_multiple_of(8) {
            return Err(KernelError::Absurd { what: "SIZE(page)", value: size });
        }
        let mut taken = Claims::new(size);
        let compound = match info.offset("page.compound_info") {
            Some(_) => taken.claim(info, "page.compound_info", 8)?,
            None => taken.claim(info, "page.compound_head", 8)?,
        };
        let refcount = info.offset("page._refcount").map(|_| taken.claim(info, "page._refcount", 4));
        let types = Types {
            buddy: page_type(info, "PAGE_BUDDY_MAPCOUNT_VALUE")?,
            offline: page_type(info, "PAGE_OFFLINE_MAPCOUNT_VALUE")?,
            slab: page_type(info, "PAGE_SLAB_MAPCOUNT_VALUE")?,
            unaccepted: page_type(info, "PAGE_UNACCEPTED_MAPCOUNT_VALUE")?,
        };
        let bits = Bits {
            lru: required_flag(info, "PG_lru")?,
            private: required_flag(info, "PG_private")?,
            swapcache: required_flag(info, "PG_swapcache")?,
            swapbacked: flag(info, "PG_swapbacked")?,
            slab: flag(info, "PG_slab")?,
            hwpoison: flag(info, "PG_hwpoison")?,
            reserved: 0,
        };
        if bits.slab == 0 && types.slab.is_none() {
            // Slab pages use the fields of other pages for their own ends.
            return Err(KernelError::MissingKey("NUMBER(PG_slab) or PAGE_SLAB_MAPCOUNT_VALUE".into()));
        }
        let head = info.number("PG_head_mask").map(i64::cast_unsigned);
        let head = head.ok_or_else(|| KernelError::MissingKey("NUMBER(PG_head_mask)".into()))?;
        bits.check(head)?;
        let free_orders = info.length("zone.free_area").unwrap_or(FREE_ORDERS);
        if !(1..=32).contains(&free_orders) {
            return Err(KernelError::Absurd { what: "LENGTH(zone.free_area)", value: free_orders });
        }
        let order = OrderSource::discover(info, size)?;
        let hugetlb = HugetlbTest::discover(info, size)?;
        let flags = taken.claim(info, "page.flags", 8)?;
        order.check(&hugetlb, flags, compound)?;
        Ok(Self {
            size: to_usize(size),
            flags,
            mapping: taken.claim(info, "page.mapping", 8)?,
            mapcount: taken.claim(info, "page._mapcount", 4)?,
            private: taken.claim(info, "page.private", 8)?,
            refcount: refcount.transpose()?,
            compound,
            order,
            hugetlb,
            head,
            bits,
            types,
            free_orders: u32::try_from(free_orders).unwrap_or(0),
        })
    }

    /// Bytes of `struct page`.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Decodes the struct page at the start of `bytes`; `None` if it is cut short.
    #[must_use]
    pub fn decode(&self, bytes: &[u8]) -> Option<PageInfo> {
        let f = Fields(bytes);
        Some(PageInfo {
            flags: f.u64(self.flags)?,
            mapping: f.u64(self.mapping)?,
            mapcount: f.u32(self.mapcount)?,
            refcount: match self.refcount {
                Some(at) => f.u32(at)?,
                None => 0,
            },
            private: f.u64(self.private)?,
            compound: f.u64(self.compound)?,
        })
    }

    /// What `head`, a compound page's first struct page, and the `second` say; `second` may be
    /// missing.
    #[must_use]
    pub fn compound(&self, head: &PageInfo, second: &[u8]) -> Compound {
        let second = Fields(second);
        let byte = |at: usize| second.bytes(at, 1).and_then(|bytes| bytes.first()).copied();
        let order = match self.order {
            OrderSource::SecondByte(at) => byte(at).map(u32::from),
            OrderSource::SecondFlags => {
                second.u64(self.flags).and_then(|flags| u32::try_from(flags & 0xff).ok())
            }
        };
        let hugetlb = match self.hugetlb {
            HugetlbTest::Destructor { at, value } => byte(at) == Some(value),
            HugetlbTest::SecondFlag(mask) => second.u64(self.flags).is_some_and(|flags| flags & mask != 0),
            HugetlbTest::Type(kind) => kind.matches(head.mapcount),
            HugetlbTest::Unknown => false,
        };
        let order = order.filter(|&order| order <= MAX_COMPOUND_ORDER).unwrap_or(0);
        Compound { order, hugetlb: hugetlb && order >= MIN_HUGETLB_ORDER }
    }

    /// Whether the page is the first of a compound page.
    #[must_use]
    pub fn is_head(&self, page: &PageInfo) -> bool {
        page.flags & self.head != 0 && page.compound & 1 == 0
    }

    /// How the page leads to its head, if it is a tail.
    #[must_use]
    pub fn head_link(&self, page: &PageInfo) -> Option<HeadLink> {
        let value = page.compound & !1;
        // A mask is a power of two, negated; no struct page lies at such an address.
        let bits = value.wrapping_neg();
        let link = if bits.is_power_of_two() && bits < 1 << 40 {
            HeadLink::Mask(value)
        } else {
            HeadLink::Pointer(value)
        };
        (page.compound & 1 != 0).then_some(link)
    }

    /// `PG_lru`: on a list of pages to reclaim.
    #[must_use]
    pub fn is_lru(&self, page: &PageInfo) -> bool {
        page.flags & self.bits.lru != 0
    }

    /// In the swap cache. PG_swapcache is another name of PG_owner_priv_1
    /// (include/linux/page-flags.h), which file systems use for their own ends: it counts with
    /// PG_swapbacked only, where that flag is told.
    #[must_use]
    pub fn is_swap_cache(&self, page: &PageInfo) -> bool {
        let backed = self.bits.swapbacked == 0 || page.flags & self.bits.swapbacked != 0;
        page.flags & self.bits.swapcache != 0 && backed
    }

    /// `PG_private`: the file system keeps data of its own about the page.
    #[must_use]
    pub fn is_private(&self, page: &PageInfo) -> bool {
        page.flags & self.bits.private != 0
    }

    /// `PAGE_MAPPING_ANON`: private memory of processes, KSM pages too.
    #[must_use]
    pub fn is_anon(&self, page: &PageInfo) -> bool {
        page.mapping & 1 != 0 && !self.is_slab(page)
    }

    /// A page of the slab allocator, by flag or, since 6.10, by type.
    #[must_use]
    pub fn is_slab(&self, page: &PageInfo) -> bool {
        match self.types.slab {
            Some(kind) => kind.matches(page.mapcount),
            None => page.flags & self.bits.slab != 0,
        }
    }

    /// Whether the page has any page type: then it is no page of a process or a file, whatever its
    /// other fields look like. (hugetlb pages have one since 6.9; they are asked for by name.)
    #[must_use]
    pub fn is_typed(&self, page: &PageInfo) -> bool {
        page.mapcount & PAGE_TYPE_BASE == PAGE_TYPE_BASE && page.mapcount != u32::MAX
    }

    /// `PG_hwpoison`: the memory is broken, reading it may stop the machine.
    #[must_use]
    pub fn is_poisoned(&self, page: &PageInfo) -> bool {
        page.flags & self.bits.hwpoison != 0
    }

    /// Takes `mask` for `PG_reserved`, which VMCOREINFO does not tell.
    pub fn set_reserved(&mut self, mask: u64) {
        self.bits.reserved = mask;
    }

    /// Whether reserved pages can be told from others.
    #[must_use]
    pub fn knows_reserved(&self) -> bool {
        self.bits.reserved != 0
    }

    /// `PG_reserved`: the page allocator never had it.
    #[must_use]
    pub fn is_reserved(&self, page: &PageInfo) -> bool {
        page.flags & self.bits.reserved != 0
    }

    /// Logically offline: in a balloon, unplugged by virtio-mem or Hyper-V; reading it may fail or
    /// stop the guest.
    #[must_use]
    pub fn is_offline(&self, page: &PageInfo) -> bool {
        self.has(self.types.offline, page)
    }

    /// The order of the free block that the page heads. `None` also where the order is beyond what
    /// the kernel has.
    #[must_use]
    pub fn free_order(&self, page: &PageInfo) -> Option<u32> {
        let order = u32::try_from(page.private).ok()?;
        (self.has(self.types.buddy, page) && order < self.free_orders).then_some(order)
    }

    /// Whether the page heads a free block, of whatever order.
    #[must_use]
    pub fn is_buddy(&self, page: &PageInfo) -> bool {
        self.has(self.types.buddy, page)
    }

    /// The order of the block of unaccepted memory (TDX, SEV-SNP) that the page heads.
    #[must_use]
    pub fn unaccepted_order(&self, page: &PageInfo) -> Option<u32> {
        self.has(self.types.unaccepted, page).then(|| self.free_orders.saturating_sub(1))
    }

    /// Whether nothing in the page contradicts that it lies inside a free block (its head says that
    /// it does): nobody holds or maps it, it is on no list and has no type.
    #[must_use]
    pub fn looks_free(&self, page: &PageInfo) -> bool {
        let in_use = self.head | self.bits.lru | self.bits.slab;
        page.refcount == 0
            && page.mapcount == u32::MAX
            && page.mapping == 0
            && page.compound & 1 == 0
            && page.flags & in_use == 0
    }

    fn has(&self, kind: Option<PageType>, page: &PageInfo) -> bool {
        kind.is_some_and(|kind| kind.matches(page.mapcount)) && !self.is_slab(page)
    }
}

impl Bits {
    /// No two flags are the same bit.
    fn check(self, head: u64) -> Result<(), KernelError> {
        let all = [self.lru, self.private, self.swapcache, self.swapbacked, self.slab, self.hwpoison, head];
        let mut seen = 0_u64;
        for mask in all {
            if mask & seen != 0 {
                return Err(KernelError::Absurd { what: "a page flag in VMCOREINFO", value: mask });
            }
            seen |= mask;
        }
        if head.is_power_of_two() {
            Ok(())
        } else {
            Err(KernelError::Absurd { what: "NUMBER(PG_head_mask)", value: head })
        }
    }
}

impl OrderSource {
    fn discover(info: &VmcoreInfo, size: u64) -> Result<Self, KernelError> {
        let second = second_byte(info, size, "page.compound_order", "folio._folio_order")?;
        Ok(second.map_or(Self::SecondFlags, Self::SecondByte))
    }

    /// The bytes of the second struct page lie apart: order and destructor in one place, or in that
    /// of its flags or the link to its head, are a damaged VMCOREINFO, and an order that looks like
    /// the destructor would drop kernel pages.
    fn check(self, hugetlb: &HugetlbTest, flags: usize, compound: usize) -> Result<(), KernelError> {
        let order = if let Self::SecondByte(at) = self { Some(at) } else { None };
        let destructor = if let HugetlbTest::Destructor { at, .. } = *hugetlb { Some(at) } else { None };
        let taken = |at: usize| [flags, compound].iter().any(|&field| at.wrapping_sub(field) < 8);
        match order
            .into_iter()
            .chain(destructor)
            .find(|&at| taken(at))
            .or(order.filter(|_| order == destructor))
        {
            Some(at) => {
                Err(KernelError::Absurd { what: "the offset of a compound page's order", value: to_u64(at) })
            }
            None => Ok(()),
        }
    }
}

impl HugetlbTest {
    fn discover(info: &VmcoreInfo, size: u64) -> Result<Self, KernelError> {
        if let Some(kind) = page_type(info, "PAGE_HUGETLB_MAPCOUNT_VALUE")? {
            return Ok(Self::Type(kind));
        }
        let mask = flag(info, "PG_hugetlb")?;
        if mask != 0 {
            return Ok(Self::SecondFlag(mask));
        }
        let at = second_byte(info, size, "page.compound_dtor", "folio._folio_dtor")?;
        let value = info.number("HUGETLB_PAGE_DTOR").and_then(|value| u8::try_from(value).ok());
        Ok(at.zip(value).map_or(Self::Unknown, |(at, value)| Self::Destructor { at, value }))
    }
}

/// A byte of the second struct page: named by itself, or as a member of a folio, which spans
/// several.
fn second_byte(info: &VmcoreInfo, size: u64, page: &str, folio: &str) -> Result<Option<usize>, KernelError> {
    let in_folio = || info.offset(folio).map(|offset| offset.wrapping_sub(size));
    match info.offset(page).or_else(in_folio) {
        Some(at) if at < size => Ok(Some(to_usize(at))),
        Some(at) => Err(KernelError::Absurd { what: "the offset of a compound page's order", value: at }),
        None => Ok(None),
    }
}

fn page_type(info: &VmcoreInfo, name: &str) -> Result<Option<PageType>, KernelError> {
    info.number(name).map(PageType::new).transpose()
}

/// The mask of a flag that VMCOREINFO gives by its number; 0 if it does not.
fn flag(info: &VmcoreInfo, name: &str) -> Result<u64, KernelError> {
    let Some(number) = info.number(name) else { return Ok(0) };
    let bit = u32::try_from(number).ok().and_then(|number| 1_u64.checked_shl(number));
    bit.ok_or(KernelError::Absurd { what: "the number of a page flag", value: number.cast_unsigned() })
}

fn required_flag(info: &VmcoreInfo, name: &str) -> Result<u64, KernelError> {
    match flag(info, name)? {
        0 => Err(KernelError::MissingKey(format!("NUMBER({name})"))),
        mask => Ok(mask),
    }
}

/// Pages in `1 << order`.
#[must_use]
pub fn pages_of(order: u32) -> u64 {
    1_u64.checked_shl(order).unwrap_or(to_u64(usize::MAX))
}

//! Symbols by name and by address.

use base::addr::{VirtAddr, to_u64, to_usize};

/// A symbol of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Where it is, with KASLR.
    pub address: VirtAddr,
    /// Where its name begins in `SymbolTable::names`.
    name: u32,
    /// Bytes of the name.
    len: u16,
    /// Its type as nm prints it: `T` is code, `D` data, `B` zeroed data, `W` a weak symbol; a small
    /// letter is a local symbol.
    pub kind: u8,
}

impl Symbol {
    /// Whether other files see it. A weak symbol is told from a local one by its letter alone
    /// (`w` and `W`).
    #[must_use]
    pub fn is_global(&self) -> bool {
        is_global(self.kind)
    }
}

/// Whether other files see a symbol of this type.
pub(super) fn is_global(kind: u8) -> bool {
    kind.is_ascii_uppercase() || matches!(kind, b'w' | b'v')
}

/// Symbols, in the order of their addresses; of one address in the order of the kernel's table.
#[derive(Clone, Debug, Default)]
pub struct SymbolTable {
    /// Names, each with a NUL behind it; the first one is empty, as in a `.strtab`.
    names: Vec<u8>,
    symbols: Vec<Symbol>,
    /// Numbers of symbols, in the order of their names.
    by_name: Vec<u32>,
}

/// Collects symbols.
#[derive(Debug)]
pub(crate) struct Builder {
    names: Vec<u8>,
    symbols: Vec<Symbol>,
}

impl Builder {
    pub(crate) fn with_capacity(symbols: usize) -> Self {
        Self { names: vec![0], symbols: Vec::with_capacity(symbols) }
    }

    /// Bytes of all names so far.
    pub(crate) fn text_len(&self) -> usize {
        self.names.len()
    }

    /// Adds a symbol. A name that no longer fits in 4 GiB of names is left out.
    pub(crate) fn push(&mut self, address: VirtAddr, kind: u8, name: &[u8]) {
        let (Ok(start), Ok(len)) = (u32::try_from(self.names.len()), u16::try_from(name.len())) else {
            return;
        };
        self.names.extend_from_slice(name);
        self.names.push(0);
        self.symbols.push(Symbol { address, name: start, len, kind });
    }

    pub(crate) fn finish(self) -> SymbolTable {
        let Self { names, mut symbols } = self;
        symbols.sort_by_key(|symbol| symbol.address);
        let mut table = SymbolTable { names, symbols, by_name: Vec::new() };
        // Global symbols before local ones of the same name, then by address. The first eight bytes
        // decide most comparisons without a look at the names.
        let start = |symbol: &Symbol| {
            let mut bytes = [0; 8];
            bytes.iter_mut().zip(table.name_bytes(symbol)).for_each(|(byte, name)| *byte = *name);
            u64::from_be_bytes(bytes)
        };
        let mut by_name: Vec<(u64, u32)> = table.symbols.iter().map(start).zip(0..).collect();
        let key = |number: u32| {
            let symbol = table.symbols.get(to_usize(number.into()));
            symbol.map(|symbol| (table.name_bytes(symbol), !symbol.is_global(), number))
        };
        by_name
            .sort_unstable_by(|one, other| one.0.cmp(&other.0).then_with(|| key(one.1).cmp(&key(other.1))));
        table.by_name = by_name.into_iter().map(|(_, number)| number).collect();
        table
    }
}

impl SymbolTable {
    /// The name of one of its symbols.
    #[must_use]
    pub fn name(&self, symbol: &Symbol) -> &str {
        core::str::from_utf8(self.name_bytes(symbol)).unwrap_or_default()
    }

    fn name_bytes(&self, symbol: &Symbol) -> &[u8] {
        let start = to_usize(symbol.name.into());
        self.names.get(start..start.saturating_add(symbol.len.into())).unwrap_or_default()
    }

    /// All names, each with a NUL behind it, as in a `.strtab`; the first one is empty.
    #[must_use]
    pub fn names(&self) -> &[u8] {
        &self.names
    }

    /// Where the name of a symbol begins in [`SymbolTable::names`].
    #[must_use]
    pub fn name_offset(&self, symbol: &Symbol) -> u32 {
        symbol.name
    }

    /// All symbols, by ascending address.
    #[must_use]
    pub fn all(&self) -> &[Symbol] {
        &self.symbols
    }

    /// The place in `by_name` of the first symbol whose name is not below this one.
    fn first_named(&self, name: &str) -> usize {
        self.by_name.partition_point(|&number| {
            let symbol = self.symbols.get(to_usize(number.into()));
            symbol.is_some_and(|symbol| self.name_bytes(symbol) < name.as_bytes())
        })
    }

    /// The address of a symbol; of several of the name a global one, then the lowest.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VirtAddr> {
        self.symbol(name).map(|symbol| symbol.address)
    }

    /// A symbol by its name, as [`SymbolTable::find`] chooses it.
    #[must_use]
    pub fn symbol(&self, name: &str) -> Option<&Symbol> {
        let start = self.first_named(name);
        let number = self.by_name.get(start).copied()?;
        let symbol = self.symbols.get(to_usize(number.into()))?;
        (self.name_bytes(symbol) == name.as_bytes()).then_some(symbol)
    }

    /// The address of a symbol if there is one of this name only.
    #[must_use]
    pub fn only(&self, name: &str) -> Option<VirtAddr> {
        let mut all = self.all_named(name);
        all.next().filter(|_| all.next().is_none()).map(|symbol| symbol.address)
    }

    /// Symbols of this name, global ones first, then by address.
    pub fn all_named(&self, name: &str) -> impl Iterator<Item = &Symbol> {
        let rest = self.by_name.get(self.first_named(name)..).unwrap_or_default();
        let symbols = rest.iter().filter_map(|&number| self.symbols.get(to_usize(number.into())));
        symbols.take_while(move |symbol| self.name_bytes(symbol) == name.as_bytes())
    }

    /// The symbol that `address` lies behind, and how far: the last one that does not lie above it.
    #[must_use]
    pub fn at(&self, address: VirtAddr) -> Option<(&Symbol, u64)> {
        let behind = self.symbols.partition_point(|symbol| symbol.address <= address);
        let last = self.symbols.get(behind.checked_sub(1)?)?;
        // The first of those that share an address: the kernel's order, in which functions come first.
        let first = self.symbols.partition_point(|symbol| symbol.address < last.address);
        let symbol = self.symbols.get(first)?;
        Some((symbol, address.0.checked_sub(symbol.address.0)?))
    }

    /// Bytes from `address` to the next higher symbol; none behind the last one.
    #[must_use]
    pub fn gap(&self, address: VirtAddr) -> Option<u64> {
        let next = self.symbols.partition_point(|symbol| symbol.address <= address);
        self.symbols.get(next)?.address.0.checked_sub(address.0)
    }

    /// Bytes of memory that it takes.
    #[must_use]
    pub fn memory_use(&self) -> u64 {
        let symbols = self.symbols.len().saturating_mul(size_of::<Symbol>());
        to_u64(self.names.len().saturating_add(symbols).saturating_add(self.by_name.len().saturating_mul(4)))
    }
}

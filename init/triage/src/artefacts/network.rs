//! `network.jsonl`: interfaces of all network namespaces, their addresses, neighbours and routes, and
//! what filters packets. `linux.network.kind` says what a row is of.

mod interfaces;
mod neighbours;
mod netfilter;
mod routes;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ::processes::system::System;
use base::addr::VirtAddr;
use symbols::knowledge::Knowledge;
use symbols::knowledge::layout::Missing;
use vmcore::kernel::KernelError;

use super::netns::Namespaces;
use super::{Artefact, Ground, Row, Rows, Stop};

pub(super) struct Layout {
    namespaces: Namespaces,
    interfaces: Result<interfaces::Layout, Missing>,
    neighbours: Result<neighbours::Layout, Missing>,
    routes: routes::Layout,
    netfilter: netfilter::Layout,
}

impl Artefact for Layout {
    const NAME: &'static str = "network";

    fn ask(known: &dyn Knowledge) -> Result<Self, Missing> {
        Ok(Self {
            namespaces: Namespaces::ask(known)?,
            interfaces: interfaces::Layout::ask(known),
            neighbours: neighbours::Layout::ask(known),
            routes: routes::Layout::ask(known),
            netfilter: netfilter::Layout::ask(known),
        })
    }

    fn walk(&self, ground: &Ground<'_>, rows: &mut Rows<'_>) -> Result<(), Stop> {
        let (nets, is_whole) = self.namespaces.all(ground.system);
        let mut devices = Devices::default();
        for net in &nets {
            let at = Namespace { net: *net, number: self.namespaces.number(ground.system, *net).ok() };
            match &self.interfaces {
                Ok(layout) => layout.walk(ground, at, &mut devices, rows)?,
                Err(missing) => rows.add(&at.failed("interface", missing))?,
            }
        }
        if !is_whole {
            rows.add(&failed("interface", &"the list of network namespaces cannot be read to its end"))?;
        }
        match &self.neighbours {
            Ok(layout) => layout.walk(ground, &devices, rows)?,
            Err(missing) => rows.add(&failed("neighbour", missing))?,
        }
        for net in &nets {
            let at = Namespace { net: *net, number: self.namespaces.number(ground.system, *net).ok() };
            self.routes.walk(ground, at, &devices, rows)?;
            self.netfilter.hooks(ground, at, rows)?;
        }
        netfilter::Layout::modules(ground, rows)
    }
}

/// A network namespace.
#[derive(Clone, Copy, Debug)]
struct Namespace {
    net: VirtAddr,
    number: Option<u32>,
}

impl Namespace {
    fn row(self, kind: &str, address: VirtAddr) -> Row {
        let mut row = row(kind, address);
        if let Some(number) = self.number {
            row.set("linux.namespace.net", number);
        }
        row
    }

    fn failed(self, kind: &str, why: &dyn core::fmt::Display) -> Row {
        let mut row = self.row(kind, self.net);
        row.error(kind, why);
        row
    }
}

fn row(kind: &str, address: VirtAddr) -> Row {
    let mut row = Row::at(address);
    row.set("linux.network.kind", kind);
    row
}

/// A row that says that something cannot be walked.
fn failed(kind: &str, why: &dyn core::fmt::Display) -> Row {
    let mut row = Row::default();
    row.set("linux.network.kind", kind);
    row.error(kind, why);
    row
}

/// Interfaces by their addresses: name, and number of the namespace.
#[derive(Default)]
struct Devices(BTreeMap<VirtAddr, (String, Option<u32>)>);

impl Devices {
    /// Says which interface a row belongs to.
    fn name(&self, device: Result<Option<VirtAddr>, KernelError>, row: &mut Row) {
        match device {
            Ok(Some(device)) => match self.0.get(&device) {
                Some((name, number)) => {
                    row.set("linux.interface.name", name.clone());
                    if let Some(number) = number {
                        row.set("linux.namespace.net", *number);
                    }
                }
                None => row.error("linux.interface.name", &format!("{:#x} is no interface", device.0)),
            },
            // Such as routes that reject.
            Ok(None) => {}
            Err(error) => row.error("linux.interface.name", &base::log::chain(&error)),
        }
    }
}

/// An IPv4 address in the order of the network.
fn ipv4(system: &System<'_>, base: VirtAddr, offset: u64) -> Result<Ipv4Addr, KernelError> {
    let word = system.half(base, offset, "an IPv4 address")?;
    Ok(Ipv4Addr::from(word.to_le_bytes()))
}

fn ipv6(system: &System<'_>, base: VirtAddr, offset: u64) -> Result<Ipv6Addr, KernelError> {
    let bytes = system.bytes(base, offset, 16, "an IPv6 address")?;
    Ok(Ipv6Addr::from(<[u8; 16]>::try_from(bytes.as_slice()).unwrap_or_default()))
}

fn text<T: ToString>(value: Result<T, KernelError>) -> Result<String, KernelError> {
    value.map(|value| value.to_string())
}

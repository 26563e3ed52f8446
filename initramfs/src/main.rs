//! The command line of `afterimage`.

mod cli;

use std::ffi::OsString;
use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ::evidence::verify::Holds;
use ::triage::artefacts::Limits;
use afterimage::check;
use afterimage::image::{self, Sources};
use afterimage::input::{self, Input};
use afterimage::loader::Loaded;
use afterimage::map::text;
use afterimage::offline::OfflineError;
use afterimage::output::OutputError;
use afterimage::readers::Reader;
use afterimage::sys::wiping::Wiping;
use afterimage::{
    debuginfo, estimate, evidence, gcore, host, inspect, isf, keys, loader, offline, output, planned, raw,
    readers, status, stream, summary, survey, triage,
};
use base::config::{Config, Dump};
use clap::Parser;
use storage::targets::{captures, tried};
use vmcore::kernel::dmesg;
use vmcore::report::Outcome;

use afterimage::evidence::custody::Handover;
use cli::{Cli, Command, Custody, Debug};

/// Keys pass through `load`.
#[global_allocator]
static ALLOCATOR: Wiping = Wiping;

/// What `switch` was called before; good for one release.
const OLD_SWITCH: &str = "capture";

/// Exit code of a recovery that has lost something.
const EXIT_DAMAGED: u8 = 3;

type Failure = Box<dyn core::error::Error>;

fn main() -> ExitCode {
    base::log::init_stderr(log::LevelFilter::Info);
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return usage(&error),
    };
    match run(cli.command) {
        Ok(code) => code,
        // Who reads a log or a report may stop early; half a dump is a failure.
        Err(error) if !error.is::<OfflineError>() && output::was_left(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&base::log::chain(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Prints what holds of captures.
fn verified(wanted: &evidence::Wanted, json: bool) -> Result<ExitCode, Failure> {
    let checked = evidence::check(wanted)?;
    let text = if json {
        base::text::json(&serde_json::to_string_pretty(&checked)?) + "\n"
    } else {
        checked.iter().map(evidence::Checked::to_text).collect()
    };
    print(&text)?;
    let holds = |state| checked.iter().any(|checked| checked.holds == state);
    Ok(ExitCode::from(match () {
        () if holds(Holds::No) => 1,
        () if holds(Holds::Unknown) => 2,
        () => 0,
    }))
}

/// Adds to a chain of custody, or shows it.
fn custody(command: Custody) -> Result<ExitCode, Failure> {
    match command {
        Custody::Add { from, to, why, key, directory } => {
            let handover = Handover { from, to, why, key };
            let entry = evidence::custody::add(&directory, &handover)?;
            let signed = if entry.key.is_empty() { ", which nobody has signed" } else { "" };
            done(&format!("added line {} of the chain of custody{signed}", entry.number))
        }
        Custody::Show { json, directory } => {
            let shown = evidence::custody::show(&directory)?;
            let text = if json {
                base::text::json(&serde_json::to_string_pretty(&shown)?) + "\n"
            } else if shown.is_empty() {
                "there is no chain of custody\n".to_owned()
            } else {
                shown.iter().map(|line| line.text() + "\n").collect()
            };
            print(&text)?;
            Ok(if shown.iter().all(|line| line.fault.is_empty()) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            })
        }
    }
}

/// Prints help, the version, or what is wrong with the arguments.
fn usage(error: &clap::Error) -> ExitCode {
    if let Err(error) = error.print() {
        output::complain(&format!("writing to standard output: {error}"));
        return ExitCode::FAILURE;
    }
    u8::try_from(error.exit_code()).map_or(ExitCode::FAILURE, ExitCode::from)
}

fn run(command: Command) -> Result<ExitCode, Failure> {
    match command {
        Command::Build { kernel, modules_dir, config, init, output } => {
            let modules_dir = modules_dir.unwrap_or_else(|| Path::new("/lib/modules").join(&kernel));
            let inits = init.map_or_else(default_inits, |init| Ok(vec![init]))?;
            build(&Sources { kernel, modules_dir, config, inits }, &output)
        }
        Command::Load { again: true, .. } => print_loaded(&loader::again()?),
        Command::Load { refresh: true, .. } => {
            loader::refresh()?.map_or_else(nothing_new, |loaded| print_loaded(&loaded))
        }
        Command::Load { image, kernel_image, key_file, .. } => load(image, kernel_image, key_file.as_deref()),
        Command::Unload => {
            let was_loaded = host::is_loaded();
            loader::unload()?;
            done(if was_loaded {
                "unloaded: a panic will not be captured"
            } else {
                "no panic kernel was loaded, so nothing was unloaded: a panic will not be captured"
            })
        }
        Command::Switch(options) => {
            if std::env::args().nth(1).as_deref() == Some(OLD_SWITCH) {
                log::warn!(
                    "`afterimage capture` is now `afterimage switch`; the next release knows the new name \
                     only"
                );
            }
            planned::run(&options)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::CollectFiles { limit, patterns } => {
            planned::files::write(&patterns, limit, io::stdout().lock())?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Keys { evidence: true, .. } => {
            done(&evidence::public(Path::new(evidence::PATH))?.to_string())
        }
        Command::Keys { file, .. } => done(&keys::make(&file)?),
        Command::Verify { key, write_sums, no_custody, json, paths } => {
            verified(&evidence::Wanted { paths, keys: key, write_sums, adds_custody: !no_custody }, json)
        }
        Command::Custody(command) => custody(command),
        Command::Propagate { dir, file, port, at } => {
            let line = keys::line(&file, &dir)?;
            print(&at.map_or_else(|| Ok(format!("{line}\n")), |at| keys::install(&line, &at, port))?)
        }
        Command::Status => status(),
        Command::Check { image, kernel_image, config, json } => {
            Ok(check(&check::Options { image, kernel_image, config }, json))
        }
        Command::Dump { pages, read_poisoned_and_offline_pages, compress, format, force, dry_run, files } => {
            let exclude = pages.exclude()?.reading_poisoned(read_poisoned_and_offline_pages);
            let dump = Dump { exclude, compress, format };
            let config = Config { dump, ..Config::default() };
            if dry_run { estimated(&files, &config) } else { dumped(&files, &config, force) }
        }
        Command::Prepare { force, device } => done(&format!("UUID={}", raw::prepare(&device, force)?)),
        Command::Recover { keep_uncollected, again, files } => recovered(&files, keep_uncollected, again),
        Command::Reset { target } => reset(&target),
        Command::Debug(command) => debug(command),
        Command::Dmesg { files } => kernel_log(&files),
        Command::Inspect { pages: true, map, files } => page_map(map.as_deref(), &files),
        Command::Inspect { files, .. } => {
            let report = inspect::report(&Input::open(&files)?)?;
            print(&report.text)?;
            Ok(whole_or_damaged(report.is_whole))
        }
    }
}

/// What hands a dump to a debugger.
fn debug(command: Debug) -> Result<ExitCode, Failure> {
    match command {
        Debug::Debuginfo { captures: Some(dir), .. } => debug_files(&dir),
        Debug::Debuginfo { files, output, split_modules, .. } => {
            let mut text = String::new();
            if let Some(output) = output {
                text.push_str(&debuginfo::text(&debuginfo::make(&files, &output)?, &output));
            }
            if let Some(dir) = split_modules {
                text.push_str(&debuginfo::text_of_modules(&debuginfo::make_modules(&files, &dir)?, &dir));
            }
            print(&text)
        }
        Debug::Crash { files, arguments } => debugged(Reader::Crash, &files, &arguments),
        Debug::Drgn { file, arguments } => debugged(Reader::Drgn, &[file], &arguments),
        Debug::Symbols { files, output } => {
            let made = isf::make(&files, &output)?;
            print(&isf::text(&made, &output))
        }
        Debug::Summary { json, files } => {
            let findings = summary::of(&files)?;
            let text = if json { findings.to_json(usize::MAX) + "\n" } else { findings.to_text(usize::MAX) };
            print(&text)?;
            Ok(whole_or_damaged(findings.missing.is_empty()))
        }
        Debug::Triage { output, rows, only, except, file_limit, limit, files } => {
            let mib = |count: u64| count.saturating_mul(1 << 20);
            let (file, all) = (mib(file_limit), mib(limit));
            let limits = Limits { file, files: all, contents: !rows, only, except, ..Limits::default() };
            let done = triage::make(&files, &output, &limits)?;
            print(&triage::text(&done, &output))?;
            Ok(whole_or_damaged(done.iter().all(|done| done.with_errors == 0 && done.stopped.is_none())))
        }
        Debug::Gcore { list: true, files, .. } => print(&gcore::list(&files)?),
        Debug::Gcore { output, files, .. } => process_core(&files, output.as_deref()),
    }
}

/// Says how large dumps would be.
fn estimated(files: &[PathBuf], config: &Config) -> Result<ExitCode, Failure> {
    let run = offline::dry_run(files, config)?;
    print(&estimate::text(&run.estimate, config, run.page_bytes))?;
    Ok(of_input(&run.faults))
}

/// The exit code after reading an input; says why it is not whole.
fn of_input(faults: &[String]) -> ExitCode {
    if !faults.is_empty() {
        output::complain(&format!("the input is INCOMPLETE: {}", faults.join("; ")));
    }
    whole_or_damaged(faults.is_empty())
}

fn whole_or_damaged(whole: bool) -> ExitCode {
    if whole { ExitCode::SUCCESS } else { ExitCode::from(EXIT_DAMAGED) }
}

/// Dumps the files before the last one into the last one.
fn dumped(files: &[PathBuf], config: &Config, force: bool) -> Result<ExitCode, Failure> {
    let Some((out, input @ [_, ..])) = files.split_last() else {
        return Err("name the vmcore and the dump to write".into());
    };
    let summary = offline::dump(input, out, config, force)?;
    let code = whole_or_damaged(summary.outcome == Outcome::Complete);
    if out == Path::new("-") {
        let _ = io::stderr().write_all(summary.to_json().as_bytes()); // standard output is the dump
        return Ok(code);
    }
    print(&summary.to_json())?;
    Ok(code)
}

fn recovered(files: &[PathBuf], keep_uncollected: bool, again: bool) -> Result<ExitCode, Failure> {
    let Some((dir, input @ [device, ..])) = files.split_last() else {
        return Err(
            "name the device and the directory, or the dump that was cut and the file to write".into()
        );
    };
    if input.len() > 1 || (device.is_file() && input::is_dump(device)?) {
        let recovered = stream::recover(input, dir)?;
        print(&recovered.text(dir))?;
        return Ok(whole_or_damaged(recovered.faults.is_empty()));
    }
    if again { Ok(()) } else { raw::refuse_collected(device) }?;
    let captures = raw::recover(device, dir, keep_uncollected)?;
    evidence::custody::note_recovered(captures.iter().map(|capture| &*capture.path), device);
    let lines: Vec<_> = captures.iter().map(|capture| base::text::line(&capture.text())).collect();
    let code = whole_or_damaged(captures.iter().all(|capture| capture.whole));
    Ok(verdict(&format!("{}\n", lines.join("\n")), code)?)
}

/// Makes the debug files of all captures in a directory; one that cannot be made stops no other.
fn debug_files(dir: &Path) -> Result<ExitCode, Failure> {
    let mut code = ExitCode::SUCCESS;
    for (path, made) in debuginfo::of_captures(dir)? {
        match made {
            Ok(report) => output::print(&debuginfo::text(&report, &path))?,
            Err(error) => {
                output::complain(&base::log::chain(&error));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// Runs a debugger; its exit code is ours.
fn debugged(reader: Reader, files: &[PathBuf], arguments: &[OsString]) -> Result<ExitCode, Failure> {
    let status = readers::run(reader, files, arguments, &|report| {
        let limit = debuginfo::limit_of_crash(report).filter(|_| reader == Reader::Crash);
        for line in debuginfo::warnings(report).into_iter().chain(limit) {
            output::complain(&line);
        }
    })?;
    let code = status.code().and_then(|code| u8::try_from(code).ok());
    Ok(code.map_or(ExitCode::FAILURE, ExitCode::from))
}

fn kernel_log(files: &[PathBuf]) -> Result<ExitCode, Failure> {
    let input = Input::open(files)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let stats = dmesg::write(&input.kernel(), &mut out)?;
    out.flush()?;
    let code = of_input(&input.faults()?);
    if stats.damaged > 0 {
        output::complain(&format!("{} records of the log are damaged", stats.damaged));
    }
    if stats.left_out > 0 {
        output::complain(&format!(
            "the oldest {} records are left out: the log claims more text than a log of this machine can have",
            stats.left_out
        ));
    }
    Ok(if stats.damaged > 0 || stats.left_out > 0 { whole_or_damaged(false) } else { code })
}

/// Makes the core of the process whose number stands behind the files.
fn process_core(files: &[PathBuf], output: Option<&Path>) -> Result<ExitCode, Failure> {
    let (Some((pid, input @ [_, ..])), Some(output)) = (files.split_last(), output) else {
        return Err("name the dump and the number of the process; --list lists them".into());
    };
    let pid = pid.to_str().and_then(|pid| pid.parse().ok());
    let pid = pid.ok_or("the last argument is no number of a process: --list lists them")?;
    let made = gcore::make(input, pid, output)?;
    print(&made.text(output))?;
    Ok(whole_or_damaged(made.report.is_whole()))
}

/// A table and a map of all pages; the map goes into a file, too, if one is named.
fn page_map(map: Option<&Path>, files: &[PathBuf]) -> Result<ExitCode, Failure> {
    map.map_or(Ok(()), |path| survey::check_map(path, files))?;
    let input = Input::open(files)?;
    let (pages, caption) = survey::survey(&input)?;
    map.map_or(Ok(()), |path| survey::write_map(&pages, &caption, path, files))?;
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let drawn = text::draw(&pages, io::stdout().is_terminal() && !no_color);
    output::print_raw(format!("{}\n{drawn}", text::table(&pages)).as_bytes())?; // with colours
    Ok(of_input(&input.faults()?))
}

fn build(sources: &Sources, output: &Path) -> Result<ExitCode, Failure> {
    let image = image::build(sources)?;
    image::publish(&image.bytes, output)?;
    for place in &image.places {
        output::print(&format!("{place}\n"))?;
    }
    done(&format!(
        "{}: {} KiB ({} KiB unpacked) for kernel {}, modules: {}",
        output.display(),
        image.bytes.len() >> 10,
        image.unpacked >> 10,
        image.manifest.kernel,
        if image.manifest.modules.is_empty() { "none".to_owned() } else { image.manifest.modules.join(" ") }
    ))
}

fn load(
    image: Option<PathBuf>,
    kernel_image: Option<PathBuf>,
    key_file: Option<&Path>,
) -> Result<ExitCode, Failure> {
    let image = image.unwrap_or(check::IMAGE.into());
    if !image.exists() {
        return Err(loader::LoadError::NoImage(image).into()); // before anything else that is missing
    }
    let kernel = kernel_image.map_or_else(running_kernel, Ok)?;
    print_loaded(&loader::load(&image, &kernel, key_file)?)
}

/// The file of the running kernel.
fn running_kernel() -> Result<PathBuf, Failure> {
    let release = host::read("/proc/sys/kernel/osrelease");
    let found = host::kernel_file(&release);
    if found.is_file() {
        return Ok(found);
    }
    let places = host::kernel_places(&release);
    Err(format!("no kernel {release} at {places}: name it with --kernel-image").into())
}

fn nothing_new() -> Result<ExitCode, Failure> {
    done("no file of keys has changed, and the way to each target is known: what is loaded stays")
}

fn reset(target: &Path) -> Result<ExitCode, Failure> {
    if target.is_dir() {
        captures::reset(target)
            .and_then(|_| tried::remove(target))
            .map_err(|error| format!("{}: {error}", target.display()))?;
    } else {
        raw::reset(target)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn print(text: &str) -> Result<ExitCode, Failure> {
    output::print(text)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what was done; a full disk does not hide that it was.
fn done(line: &str) -> Result<ExitCode, Failure> {
    output::done(line)?;
    Ok(ExitCode::SUCCESS)
}

/// Says what a load has armed.
fn print_loaded(loaded: &Loaded) -> Result<ExitCode, Failure> {
    let planned = if loader::why_not_planned().is_none() { ", and so will a planned switch" } else { "" };
    let image = loaded.image_file.display();
    done(&format!("loaded {image} with kernel {}: a panic will be captured{planned}", loaded.kernel))
}

fn status() -> Result<ExitCode, Failure> {
    let status = status::Status::look();
    let code = if status.saved { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    verdict(&status.text, code).map_err(Failure::from)
}

/// Prints what an exit code stands for. Who read enough and left still gets the code.
fn verdict(text: &str, code: ExitCode) -> Result<ExitCode, OutputError> {
    match output::print(text) {
        Err(error) if !output::was_left(&error) => Err(error),
        _ => Ok(code),
    }
}

fn check(options: &check::Options, json: bool) -> ExitCode {
    let report = check::Host::observe(options).map(|host| {
        let report = check::Report::of(&host);
        // A check of another image says nothing of what is loaded.
        if options.is_of_what_is_loaded() {
            check::keep(&report, host.recorded.as_ref());
        }
        report
    });
    let printed = report.map_err(Failure::from).and_then(|report| {
        let text = if json { report.to_json() } else { report.to_text() };
        Ok(verdict(&text, report.exit_code())?)
    });
    printed.unwrap_or_else(|error| {
        output::complain(&base::log::chain(error.as_ref()));
        ExitCode::from(2)
    })
}

/// The inits that were built or installed together with this program, the smaller one first.
fn default_inits() -> Result<Vec<PathBuf>, Failure> {
    let program = std::env::current_exe()?;
    let beside = program.parent().unwrap_or(Path::new("/"));
    let places = [beside.to_owned(), beside.join("../lib/afterimage")];
    let inits = |place: &PathBuf| -> Vec<PathBuf> {
        ["init-storage", "init"]
            .map(|name| place.join(name))
            .into_iter()
            .filter(|path| path.is_file())
            .collect()
    };
    places.iter().map(inits).find(|inits| !inits.is_empty()).ok_or_else(|| {
        let [a, b] = places.map(|path| path.join("init").display().to_string());
        format!("no init at {a} or {b}: name it with --init").into()
    })
}

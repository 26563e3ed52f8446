//! Servers for tests, unmodified, on loopback: started on a free port, stopped when dropped.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// The name of the host in certificates and URLs; its address is pinned.
pub(crate) const HOST: &str = "collector.test";

/// A program that must be there.
pub(crate) fn program(name: &str, package: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    let found = path.split(':').map(|dir| Path::new(dir).join(name)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{name} is missing: install the package {package}"))
}

/// What `scripts/fetch-s3s` built.
fn s3s_fs() -> PathBuf {
    let cache = std::env::var_os("AFTERIMAGE_CACHE").map(PathBuf::from);
    let cache = cache
        .unwrap_or_else(|| Path::new(&std::env::var_os("HOME").expect("HOME")).join(".cache/afterimage"));
    let path = cache.join("tools/bin/s3s-fs");
    assert!(path.exists(), "{} is missing: run scripts/fetch-s3s", path.display());
    path
}

pub(crate) fn run(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

fn wait_for(port: u16, child: &mut Child, log: &Path) {
    let start = Instant::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        let ended = child.try_wait().unwrap();
        let message = fs::read_to_string(log).unwrap_or_default();
        assert!(ended.is_none() && start.elapsed() < Duration::from_secs(30), "no server: {message}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Certificates made by openssl, in a directory.
pub(crate) struct Certificates {
    pub(crate) dir: TempDir,
}

impl Certificates {
    /// A root (`ca`), a certificate of [`HOST`] (`server`) and one of ours (`client`).
    pub(crate) fn new() -> Self {
        let this = Self { dir: TempDir::new().unwrap() };
        this.root("ca", None);
        this.signed("server", &format!("subjectAltName=DNS:{HOST}"), None);
        this.signed("client", "extendedKeyUsage=clientAuth", None);
        this
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// openssl, at another time if one is given.
    fn openssl(&self, at: Option<&str>) -> Command {
        let openssl = program("openssl", "openssl");
        let mut command = match at {
            None => Command::new(openssl),
            Some(at) => {
                let mut command = Command::new(program("faketime", "faketime"));
                command.arg(at).arg(openssl);
                command
            }
        };
        command.current_dir(self.dir.path());
        command
    }

    pub(crate) fn root(&self, name: &str, at: Option<&str>) {
        let (key, pem) = (format!("{name}.key"), format!("{name}.pem"));
        run(self
            .openssl(at)
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
            .args([
                "-nodes",
                "-days",
                "3650",
                "-subj",
                &format!("/CN={name}"),
                "-keyout",
                &key,
                "-out",
                &pem,
            ]));
    }

    /// Signed by `ca`, for 30 days.
    pub(crate) fn signed(&self, name: &str, extension: &str, at: Option<&str>) {
        let (key, csr, pem, ext) =
            (format!("{name}.key"), format!("{name}.csr"), format!("{name}.pem"), format!("{name}.ext"));
        fs::write(self.path(&ext), extension).unwrap();
        run(self
            .openssl(at)
            .args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-subj", &format!("/CN={name}"), "-keyout", &key, "-out", &csr]));
        run(self
            .openssl(at)
            .args(["x509", "-req", "-in", &csr, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"])
            .args(["-days", "30", "-extfile", &ext, "-out", &pem]));
    }

    /// `sha256/BASE64` of the public key.
    pub(crate) fn pin(&self, name: &str) -> String {
        let (key, der) = (format!("{name}.key"), format!("{name}.der"));
        run(self.openssl(None).args(["pkey", "-in", &key, "-pubout", "-outform", "DER", "-out", &der]));
        format!("sha256/{}", STANDARD.encode(Sha256::digest(fs::read(self.path(&der)).unwrap())))
    }
}

/// A server process with files of its own.
pub(crate) struct Server {
    pub(crate) dir: TempDir,
    pub(crate) port: u16,
    child: Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return; // stopped already: its number may be another's
        }
        let _ = Command::new("kill").arg(self.child.id().to_string()).status(); // nginx ends its workers
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) && start.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// nginx with TLS that takes PUT: `server` and `location` are more of its configuration.
pub(crate) fn nginx(certificates: &Certificates, certificate: &str, server: &str, location: &str) -> Server {
    let nginx = program("nginx", "nginx");
    let dir = TempDir::new().unwrap();
    let root = dir.path().display();
    let (pem, key) =
        (certificates.path(&format!("{certificate}.pem")), certificates.path(&format!("{certificate}.key")));
    let port = free_port();
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {root}/tmp-{name};\n"))
        .concat();
    let config = format!(
        "daemon off; user root; worker_processes 1; pid {root}/pid; error_log {root}/error.log info;\n\
         events {{ worker_connections 64; }}\n\
         http {{ {temporary} log_format it '$connection $request_method $status'; access_log \
         {root}/access.log it; client_max_body_size 0;\n\
         server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {};\n\
         root {root}/www; {server}\n\
         location / {{ dav_methods PUT; create_full_put_path on; {location} }} }} }}\n",
        pem.display(),
        key.display()
    );
    fs::create_dir(dir.path().join("www")).unwrap();
    fs::write(dir.path().join("nginx.conf"), config).unwrap();
    let mut command = Command::new(nginx);
    command.args(["-e", "stderr", "-p"]).arg(dir.path()).arg("-c").arg(dir.path().join("nginx.conf"));
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut server = Server { dir, port, child };
    let log = server.dir.path().join("error.log");
    wait_for(port, &mut server.child, &log);
    server
}

/// Access key and secret key of the object store.
pub(crate) const KEYS: (&str, &str) = ("host-web1", "a secret that nobody sees");

/// s3s-fs with a bucket `dumps`; its clock is off by `clock`, as faketime takes it.
pub(crate) fn s3(clock: Option<&str>) -> Server {
    let dir = TempDir::new().unwrap();
    fs::create_dir(dir.path().join("dumps")).unwrap();
    let port = free_port();
    let child = start_s3(dir.path(), port, clock);
    let mut server = Server { dir, port, child };
    let log = server.dir.path().join("log");
    wait_for(port, &mut server.child, &log);
    server
}

fn start_s3(dir: &Path, port: u16, clock: Option<&str>) -> Child {
    let mut command = match clock {
        None => Command::new(s3s_fs()),
        Some(clock) => {
            // The wrapper would stay as the process that is stopped; the library does without it.
            let library = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1";
            assert!(Path::new(library).exists(), "{library} is missing: install the package faketime");
            let mut command = Command::new(s3s_fs());
            command.env("LD_PRELOAD", library).env("FAKETIME", clock);
            command.env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
            command
        }
    };
    command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
    command.args(["--access-key", KEYS.0, "--secret-key", KEYS.1]).arg(dir);
    let log = fs::File::create(dir.join("log")).unwrap();
    command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap()
}

impl Server {
    /// What nginx was asked: the number of the connection, the method, the status of the answer. It
    /// is stopped for that: it notes a request after the answer.
    pub(crate) fn requests(&mut self) -> Vec<String> {
        run(Command::new("kill").args(["-QUIT", &self.child.id().to_string()]));
        self.child.wait().unwrap();
        let log = fs::read_to_string(self.dir.path().join("access.log")).unwrap();
        log.lines().map(str::to_owned).collect()
    }

    /// Kills an object store at once.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again where it was.
    pub(crate) fn restart_s3(&mut self) {
        self.child = start_s3(self.dir.path(), self.port, None);
        wait_for(self.port, &mut self.child, &self.dir.path().join("log"));
    }
}

/// Passes connections on, and breaks each that has carried as many bytes as are left.
pub(crate) struct Proxy {
    pub(crate) port: u16,
}

impl Proxy {
    /// The first `cuts` connections break after `bytes` bytes to the server.
    pub(crate) fn new(to: u16, bytes: usize, cuts: i64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let left = Arc::new(AtomicI64::new(cuts));
        thread::spawn(move || {
            for from in listener.incoming().flatten() {
                let left = Arc::clone(&left);
                thread::spawn(move || pass(&from, to, bytes, &left));
            }
        });
        Self { port }
    }
}

fn pass(from: &TcpStream, to: u16, limit: usize, cuts: &AtomicI64) {
    let Ok(server) = TcpStream::connect(SocketAddr::from((Ipv4Addr::LOCALHOST, to))) else { return };
    let (mut back_from, mut back_to) = (server.try_clone().unwrap(), from.try_clone().unwrap());
    thread::spawn(move || {
        let _ = std::io::copy(&mut back_from, &mut back_to);
        let _ = back_to.shutdown(Shutdown::Both);
    });
    let (mut from, mut to, mut buffer, mut passed) = (from, &server, vec![0; 64 << 10], 0_usize);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        passed += read;
        if to.write_all(&buffer[..read]).is_err() {
            break;
        }
        if passed > limit && cuts.fetch_sub(1, Ordering::SeqCst) > 0 {
            break;
        }
    }
    let _ = server.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}

//! A lean HTTPS client: one connection, one request at a time, answers by length or in chunks.
//! The benchmark's load generator shares the machine with the server, so it must cost little.

use anyhow::{Context, Result, bail};
use base64::Engine;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use std::path::Path;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// How to reach the server as its administrator.
#[derive(Clone)]
pub struct Endpoint {
    address: String,
    connector: TlsConnector,
}

impl Endpoint {
    /// Reads a kubeconfig that Skeg wrote.
    pub fn from_kubeconfig(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)?;
        let field = |name: &str| {
            let line = text
                .lines()
                .find_map(|line| line.trim().strip_prefix(name))
                .with_context(|| name.to_owned())?;
            anyhow::Ok(line.trim_start_matches(':').trim().to_owned())
        };
        let pem = |name: &str| anyhow::Ok(base64::engine::general_purpose::STANDARD.decode(field(name)?)?);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&pem("certificate-authority-data")?)?)?;
        let certificate = CertificateDer::from_pem_slice(&pem("client-certificate-data")?)?;
        let key = PrivateKeyDer::from_pem_slice(&pem("client-key-data")?)?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(vec![certificate], key)?;
        let address = field("server")?.trim_start_matches("https://").to_owned();
        Ok(Endpoint { address, connector: TlsConnector::from(Arc::new(config)) })
    }

    pub async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        let stream = self.connector.connect(ServerName::try_from("localhost")?, stream).await?;
        Ok(Connection { stream, buffer: Vec::with_capacity(64 << 10), used: 0 })
    }
}

/// One connection that is kept.
pub struct Connection {
    stream: TlsStream<TcpStream>,
    buffer: Vec<u8>,
    /// Bytes of the buffer that were handed out.
    used: usize,
}

/// The bytes of a request; a body is JSON where `headers` do not say otherwise.
pub fn request(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let mut bytes =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n{headers}")
            .into_bytes();
    if !body.is_empty() {
        if !headers.contains("Content-Type:") {
            bytes.extend_from_slice(b"Content-Type: application/json\r\n");
        }
        bytes.extend_from_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    bytes.extend_from_slice(b"\r\n");
    bytes.extend_from_slice(body);
    bytes
}

impl Connection {
    /// The client's port: it names the connection on the server's side too.
    pub fn port(&self) -> Result<u16> {
        Ok(self.stream.get_ref().0.local_addr()?.port())
    }

    /// Sends a request and returns status and body.
    pub async fn send(&mut self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        let (status, length) = self.open(request).await?;
        let body = match length {
            Some(length) => self.take(length).await?,
            None => {
                let mut body = Vec::new();
                while let Some(chunk) = self.chunk().await? {
                    body.extend_from_slice(&chunk);
                }
                body
            }
        };
        Ok((status, body))
    }

    /// Sends a request and reads the head of the answer; `None` for a chunked body.
    pub async fn open(&mut self, request: &[u8]) -> Result<(u16, Option<usize>)> {
        self.stream.write_all(request).await?;
        self.stream.flush().await?;
        let head = self.until(b"\r\n\r\n").await?;
        let head = String::from_utf8_lossy(&head).into_owned();
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        Ok((status, header("content-length").map(|length| length.parse()).transpose()?))
    }

    /// The next chunk of a chunked body.
    pub async fn chunk(&mut self) -> Result<Option<Vec<u8>>> {
        let line = self.until(b"\r\n").await?;
        let size = usize::from_str_radix(String::from_utf8_lossy(&line).trim(), 16)?;
        let chunk = self.take(size).await?;
        self.until(b"\r\n").await?;
        Ok((size > 0).then_some(chunk))
    }

    async fn until(&mut self, end: &[u8]) -> Result<Vec<u8>> {
        let mut searched = self.used;
        loop {
            if let Some(at) = self.buffer[searched..].windows(end.len()).position(|window| window == end) {
                let stop = searched + at + end.len();
                let taken = self.buffer[self.used..stop].to_vec();
                self.used = stop;
                return Ok(taken);
            }
            searched = self.buffer.len().saturating_sub(end.len() - 1).max(self.used);
            let moved = self.fill().await?;
            searched -= moved;
        }
    }

    pub async fn take(&mut self, length: usize) -> Result<Vec<u8>> {
        while self.buffer.len() - self.used < length {
            self.fill().await?;
        }
        let taken = self.buffer[self.used..self.used + length].to_vec();
        self.used += length;
        Ok(taken)
    }

    /// Reads more; returns by how much the buffer's start moved.
    async fn fill(&mut self) -> Result<usize> {
        let moved = self.used;
        if moved > 0 {
            self.buffer.drain(..moved);
            self.used = 0;
        }
        if self.stream.read_buf(&mut self.buffer).await? == 0 {
            bail!("the server closed the connection");
        }
        Ok(moved)
    }
}

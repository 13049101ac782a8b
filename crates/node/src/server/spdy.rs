//! The server's side of SPDY/3.1 as far as Kubernetes streams use it: streams that the client
//! opens, their data, pings. Flow control windows are not used by either side's libraries.
//! Source: the SPDY protocol draft 3.1.

use bytes::{Bytes, BytesMut};
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use std::collections::BTreeMap;
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FLAG_FIN: u8 = 1;
/// Data frames waiting for one stream's reader.
const STREAM_FRAMES_MAX: usize = 64;
const OUT_FRAMES_MAX: usize = 64;
const STREAMS_MAX: usize = 1024;
const HEADERS_BYTES_MAX: usize = 64 << 10;
const FRAME_BYTES_MAX: usize = 1 << 20;

/// The dictionary that header compression starts from.
static DICTIONARY: std::sync::LazyLock<Vec<u8>> = std::sync::LazyLock::new(|| {
    const NAMES: &str = "options head post put delete trace accept accept-charset accept-encoding accept-language \
        accept-ranges age allow authorization cache-control connection content-base content-encoding \
        content-language content-length content-location content-md5 content-range content-type date etag expect \
        expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified \
        location max-forwards pragma proxy-authenticate proxy-authorization range referer retry-after server te \
        trailer transfer-encoding upgrade user-agent vary via warning www-authenticate method get status 200~OK \
        version HTTP/1.1 url public set-cookie keep-alive origin";
    const REST: &str = "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505\
        203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized\
        403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable\
        Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT\
        chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,\
        text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0.";
    let mut out = Vec::with_capacity(1423);
    for name in NAMES.split_whitespace() {
        let name = name.replace('~', " ");
        out.extend((name.len() as u32).to_be_bytes());
        out.extend(name.as_bytes());
    }
    out.extend(REST.as_bytes());
    out
});

/// A stream the client opened.
pub struct SpdyStream {
    pub headers: BTreeMap<String, String>,
    /// Data in order; ends when the client closes its side.
    pub incoming: mpsc::Receiver<Bytes>,
    pub outgoing: Outgoing,
}

/// The server's side of a stream. Dropping it closes that side.
pub struct Outgoing {
    id: u32,
    frames: mpsc::Sender<Out>,
    closed: bool,
}

impl Outgoing {
    pub async fn send(&self, data: Bytes) -> io::Result<()> {
        self.frames.send(Out::Data { id: self.id, data, fin: false }).await.map_err(|_| broken())
    }

    /// Says that nothing more comes.
    pub async fn close(mut self) {
        self.closed = true;
        let _ = self.frames.send(Out::Data { id: self.id, data: Bytes::new(), fin: true }).await;
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        if !self.closed {
            let _ = self.frames.try_send(Out::Data { id: self.id, data: Bytes::new(), fin: true });
        }
    }
}

enum Out {
    Reply { id: u32 },
    Data { id: u32, data: Bytes, fin: bool },
    Ping { id: u32 },
    Reset { id: u32, status: u32 },
}

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

fn invalid(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("SPDY: {why}"))
}

/// Serves one connection: streams the client opens go to `streams`. Returns when it is over.
pub async fn serve(
    io: impl AsyncRead + AsyncWrite + Send + 'static,
    streams: mpsc::Sender<SpdyStream>,
) -> io::Result<()> {
    let (reader, writer) = tokio::io::split(io);
    let (frames, outgoing) = mpsc::channel(OUT_FRAMES_MAX);
    let writing = write_all(writer, outgoing);
    let reading = read_all(reader, frames, streams);
    tokio::pin!(writing);
    tokio::select! {
        // What was sent before the client went away is still written out.
        result = reading => match result {
            Ok(()) => writing.await,
            Err(error) => Err(error),
        },
        result = &mut writing => result,
    }
}

async fn read_all(
    mut io: impl AsyncRead + Unpin,
    frames: mpsc::Sender<Out>,
    streams: mpsc::Sender<SpdyStream>,
) -> io::Result<()> {
    let mut inflate = Inflate::new();
    let mut open: BTreeMap<u32, mpsc::Sender<Bytes>> = BTreeMap::new();
    loop {
        let mut head = [0u8; 8];
        if let Err(error) = io.read_exact(&mut head).await {
            return if error.kind() == io::ErrorKind::UnexpectedEof { Ok(()) } else { Err(error) };
        }
        let word = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
        let flags = head[4];
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(invalid("frame too large"));
        }
        let mut body = BytesMut::zeroed(length);
        io.read_exact(&mut body).await?;
        let body = body.freeze();
        if word & 0x8000_0000 == 0 {
            let id = word;
            if let Some(stream) = open.get(&id)
                && !body.is_empty()
                && stream.send(body).await.is_err()
            {
                // Nobody reads it any more; the rest of its data is dropped.
                open.remove(&id);
            }
            if flags & FLAG_FIN != 0 {
                open.remove(&id);
            }
            continue;
        }
        let number = |at: usize| -> io::Result<u32> {
            let bytes = body.get(at..at + 4).ok_or_else(|| invalid("short frame"))?;
            Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
        };
        match (word & 0xffff) as u16 {
            SYN_STREAM => {
                let id = number(0)? & 0x7fff_ffff;
                let headers = inflate.headers(body.get(10..).ok_or_else(|| invalid("short frame"))?)?;
                if open.len() >= STREAMS_MAX {
                    let _ = frames.send(Out::Reset { id, status: 3 }).await;
                    continue;
                }
                let (sender, incoming) = mpsc::channel(STREAM_FRAMES_MAX);
                if flags & FLAG_FIN == 0 {
                    open.insert(id, sender);
                }
                frames.send(Out::Reply { id }).await.map_err(|_| broken())?;
                let outgoing = Outgoing { id, frames: frames.clone(), closed: false };
                streams.send(SpdyStream { headers, incoming, outgoing }).await.map_err(|_| broken())?;
            }
            RST_STREAM => {
                open.remove(&(number(0)? & 0x7fff_ffff));
            }
            PING => frames.send(Out::Ping { id: number(0)? }).await.map_err(|_| broken())?,
            GOAWAY => return Ok(()),
            // SETTINGS, HEADERS and WINDOW_UPDATE change nothing here.
            _ => {}
        }
    }
}

async fn write_all(mut io: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Out>) -> io::Result<()> {
    let mut deflate = Deflate::new()?;
    while let Some(frame) = frames.recv().await {
        match frame {
            Out::Data { id, data, fin } => {
                let length = (data.len() as u32).to_be_bytes();
                let mut head = [0u8; 8];
                head[..4].copy_from_slice(&id.to_be_bytes());
                head[4] = if fin { FLAG_FIN } else { 0 };
                head[5..].copy_from_slice(&length[1..]);
                io.write_all(&head).await?;
                io.write_all(&data).await?;
            }
            Out::Reply { id } => {
                let mut body = id.to_be_bytes().to_vec();
                body.extend(deflate.no_headers()?);
                io.write_all(&control(SYN_REPLY, &body)).await?;
            }
            Out::Ping { id } => io.write_all(&control(PING, &id.to_be_bytes())).await?,
            Out::Reset { id, status } => {
                io.write_all(&control(RST_STREAM, &[id.to_be_bytes(), status.to_be_bytes()].concat()))
                    .await?;
            }
        }
        io.flush().await?;
    }
    io.shutdown().await
}

fn control(kind: u16, body: &[u8]) -> Vec<u8> {
    let mut out = vec![0x80, 3];
    out.extend(kind.to_be_bytes());
    out.push(0);
    out.extend(&(body.len() as u32).to_be_bytes()[1..]);
    out.extend(body);
    out
}

/// Header blocks of one direction share one zlib stream.
struct Inflate(Decompress);

impl Inflate {
    fn new() -> Self {
        Inflate(Decompress::new(true))
    }

    fn headers(&mut self, mut block: &[u8]) -> io::Result<BTreeMap<String, String>> {
        let mut plain: Vec<u8> = Vec::new();
        let mut buffer = [0u8; 4096];
        loop {
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let status = match self.0.decompress(block, &mut buffer, FlushDecompress::Sync) {
                Ok(status) => status,
                Err(error) if error.needs_dictionary().is_some() => {
                    let used = (self.0.total_in() - before_in) as usize;
                    block = &block[used.min(block.len())..];
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| invalid("dictionary"))?;
                    continue;
                }
                Err(_) => return Err(invalid("header compression")),
            };
            let (read, wrote) =
                ((self.0.total_in() - before_in) as usize, (self.0.total_out() - before_out) as usize);
            block = &block[read..];
            plain.extend(&buffer[..wrote]);
            if plain.len() > HEADERS_BYTES_MAX {
                return Err(invalid("headers too large"));
            }
            if status == Status::StreamEnd
                || block.is_empty() && wrote < buffer.len()
                || read == 0 && wrote == 0
            {
                break;
            }
        }
        parse_headers(&plain)
    }
}

fn parse_headers(mut plain: &[u8]) -> io::Result<BTreeMap<String, String>> {
    let number = |plain: &mut &[u8]| -> io::Result<usize> {
        let (bytes, rest) = plain.split_at_checked(4).ok_or_else(|| invalid("short headers"))?;
        *plain = rest;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    let count = number(&mut plain)?;
    let mut out = BTreeMap::new();
    for _ in 0..count {
        let mut word = || -> io::Result<String> {
            let length = number(&mut plain)?;
            let (bytes, rest) = plain.split_at_checked(length).ok_or_else(|| invalid("short headers"))?;
            plain = rest;
            Ok(String::from_utf8_lossy(bytes).into_owned())
        };
        let (name, value) = (word()?, word()?);
        out.insert(name.to_ascii_lowercase(), value);
    }
    Ok(out)
}

struct Deflate(Compress);

impl Deflate {
    fn new() -> io::Result<Self> {
        let mut compress = Compress::new(Compression::default(), true);
        compress.set_dictionary(&DICTIONARY).map_err(|_| invalid("dictionary"))?;
        Ok(Deflate(compress))
    }

    /// An empty header block.
    fn no_headers(&mut self) -> io::Result<Vec<u8>> {
        self.block(&0u32.to_be_bytes())
    }

    fn block(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(plain.len() + 128);
        self.0
            .compress_vec(plain, &mut out, FlushCompress::Sync)
            .map_err(|_| invalid("header compression"))?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_dictionary_is_the_protocols() {
        // RFC 1950 identifies a dictionary by its Adler-32 sum; this one's is well known.
        let (mut a, mut b) = (1u32, 0u32);
        for byte in DICTIONARY.iter() {
            a = (a + u32::from(*byte)) % 65521;
            b = (b + a) % 65521;
        }
        assert_eq!((DICTIONARY.len(), b << 16 | a), (1423, 0xe3c6_a7c2));
    }

    #[tokio::test]
    async fn streams_carry_data_both_ways() {
        let (client, server) = tokio::io::duplex(64 << 10);
        let (sender, mut streams) = mpsc::channel(4);
        let serving = tokio::spawn(serve(server, sender));
        let (mut from, mut to) = tokio::io::split(client);
        let mut deflate = Deflate::new().unwrap();
        for id in [1u32, 3] {
            let mut plain = 1u32.to_be_bytes().to_vec();
            for word in ["streamtype", "data"] {
                plain.extend((word.len() as u32).to_be_bytes());
                plain.extend(word.as_bytes());
            }
            let mut body = id.to_be_bytes().to_vec();
            body.extend([0; 6]);
            body.extend(deflate.block(&plain).unwrap());
            to.write_all(&control(SYN_STREAM, &body)).await.unwrap();
            let mut stream = streams.recv().await.unwrap();
            assert_eq!(stream.headers["streamtype"], "data");
            to.write_all(&[0, 0, 0, id as u8, FLAG_FIN, 0, 0, 2, b'h', b'i']).await.unwrap();
            assert_eq!(stream.incoming.recv().await.unwrap(), "hi");
            assert_eq!(stream.incoming.recv().await, None);
            let mut head = [0u8; 8];
            from.read_exact(&mut head).await.unwrap();
            assert_eq!(head[..4], [0x80, 3, 0, SYN_REPLY as u8]);
            let mut reply = vec![0; head[7] as usize];
            from.read_exact(&mut reply).await.unwrap();
            stream.outgoing.send(Bytes::from_static(b"yo")).await.unwrap();
            stream.outgoing.close().await;
            let mut data = [0u8; 10];
            from.read_exact(&mut data).await.unwrap();
            assert_eq!(data, [0, 0, 0, id as u8, 0, 0, 0, 2, b'y', b'o']);
            from.read_exact(&mut head).await.unwrap();
            assert_eq!(head, [0, 0, 0, id as u8, FLAG_FIN, 0, 0, 0]);
        }
        to.write_all(&control(PING, &7u32.to_be_bytes())).await.unwrap();
        let mut ping = [0u8; 12];
        from.read_exact(&mut ping).await.unwrap();
        assert_eq!(ping[8..], 7u32.to_be_bytes());
        drop((from, to));
        let _ = serving.await.unwrap();
    }
}

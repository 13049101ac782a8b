//! WebSocket frames on their way from a node to a client.

use std::io;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

/// What one write carries at most: as much as a TLS record does.
const PIECE_BYTES: usize = 16 << 10;
/// A frame's header with the longest length and a mask (RFC 6455, section 5.2).
const HEADER_BYTES_MAX: usize = 14;

/// Passes frames on, a write for each, until `from` ends. Clients that poll their socket do not see
/// a second frame of the same TLS record.
///
/// # Errors
/// Those of either side, and an end within a frame.
pub async fn copy(from: impl AsyncRead + Unpin, to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut from = BufReader::with_capacity(PIECE_BYTES, from);
    let mut piece = vec![0; PIECE_BYTES];
    while !from.fill_buf().await?.is_empty() {
        from.read_exact(&mut piece[..2]).await?;
        let (short, masked) = (piece[1] & 0x7f, piece[1] & 0x80 != 0);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mut header = 2 + extended;
        from.read_exact(&mut piece[2..header]).await?;
        let mut left = match extended {
            0 => u64::from(short),
            _ => piece[2..header].iter().fold(0, |length, byte| length << 8 | u64::from(*byte)),
        } + if masked { 4 } else { 0 };
        loop {
            let part = left.min((PIECE_BYTES - HEADER_BYTES_MAX) as u64) as usize;
            from.read_exact(&mut piece[header..header + part]).await?;
            to.write_all(&piece[..header + part]).await?;
            to.flush().await?;
            left -= part as u64;
            header = 0;
            if left == 0 {
                break;
            }
        }
    }
    to.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::Pin;
    use std::task::{Context, Poll};

    /// Keeps each write apart.
    #[derive(Default)]
    struct Writes(Vec<Vec<u8>>);

    impl AsyncWrite for Writes {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            self.0.push(bytes.to_vec());
            Poll::Ready(Ok(bytes.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn frame(payload: usize, masked: bool) -> Vec<u8> {
        let mask = if masked { 0x80 } else { 0 };
        let mut frame = match payload {
            0..126 => vec![0x82, mask | payload as u8],
            126..65_536 => [&[0x82, mask | 126][..], &(payload as u16).to_be_bytes()].concat(),
            _ => [&[0x82, mask | 127][..], &(payload as u64).to_be_bytes()].concat(),
        };
        frame.resize(frame.len() + payload + if masked { 4 } else { 0 }, 7);
        frame
    }

    #[tokio::test]
    async fn each_frame_is_written_apart() {
        let small =
            [frame(0, false), frame(5, false), frame(5, true), frame(125, false), frame(4_000, false)];
        let mut writes = Writes::default();
        copy(&small.concat()[..], &mut writes).await.unwrap();
        assert_eq!(writes.0, small);
        let large = [frame(40_000, false), frame(70_000, true), frame(1, false)];
        let mut writes = Writes::default();
        copy(&large.concat()[..], &mut writes).await.unwrap();
        assert_eq!(writes.0.concat(), large.concat());
        assert_eq!(*writes.0.last().unwrap(), frame(1, false));
        assert!(writes.0.iter().all(|write| write.len() <= PIECE_BYTES));
    }

    #[tokio::test]
    async fn an_end_within_a_frame_is_an_error() {
        for end in [1, 3, 5] {
            let cut = &frame(300, false)[..end];
            assert_eq!(
                copy(cut, &mut Writes::default()).await.unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof
            );
        }
    }
}

//! A reader of JSON that this server wrote: no white space, no duplicates, sound UTF-8. Values are
//! handed to whoever knows what they are; nothing is kept.

use skeg_api::Status;
use std::borrow::Cow;

/// JSON that is not what its field should have: a fault of the server.
#[derive(Debug, thiserror::Error)]
#[error("encoding in protobuf: expected {expected} before byte {at}")]
pub struct JsonError {
    expected: &'static str,
    at: usize,
}

impl From<JsonError> for Status {
    fn from(error: JsonError) -> Self {
        Status::internal(error)
    }
}

type Result<T = (), E = JsonError> = std::result::Result<T, E>;

pub struct Json<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Json<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Json { bytes, at: 0 }
    }

    pub fn wrong(&self, expected: &'static str) -> JsonError {
        JsonError { expected, at: self.at }
    }

    /// The first byte of what comes.
    pub fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let is = self.peek() == Some(byte);
        self.at += usize::from(is);
        is
    }

    fn expect(&mut self, byte: u8, expected: &'static str) -> Result {
        if self.take(byte) { Ok(()) } else { Err(self.wrong(expected)) }
    }

    fn literal(&mut self, text: &str) -> bool {
        let is = self.bytes[self.at..].starts_with(text.as_bytes());
        self.at += if is { text.len() } else { 0 };
        is
    }

    /// Passes over `null`.
    pub fn null(&mut self) -> bool {
        self.peek() == Some(b'n') && self.literal("null")
    }

    pub fn end(&self) -> Result {
        if self.at == self.bytes.len() { Ok(()) } else { Err(self.wrong("the end")) }
    }

    /// The bytes of a string, borrowed unless it has escapes.
    pub fn string(&mut self) -> Result<Cow<'a, [u8]>> {
        let start = self.at;
        let escaped = self.skip_string()?;
        let quoted = &self.bytes[start..self.at];
        if !escaped {
            return Ok(Cow::Borrowed(&quoted[1..quoted.len() - 1]));
        }
        let text: String = serde_json::from_slice(quoted).map_err(|_| self.wrong("a string"))?;
        Ok(Cow::Owned(text.into_bytes()))
    }

    /// Passes over a string; whether it has escapes.
    fn skip_string(&mut self) -> Result<bool> {
        self.expect(b'"', "a string")?;
        let mut escaped = false;
        loop {
            let rest = &self.bytes[self.at..];
            let len = rest.iter().position(|byte| matches!(byte, b'"' | b'\\'));
            let len = len.ok_or_else(|| self.wrong("the end of a string"))?;
            if rest[len] == b'"' {
                self.at += len + 1;
                return Ok(escaped);
            }
            escaped = true;
            self.at = (self.at + len + 2).min(self.bytes.len());
        }
    }

    fn digits(&mut self) -> &'a str {
        let rest = &self.bytes[self.at..];
        let len =
            rest.iter().position(|byte| !matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E'));
        let digits = &rest[..len.unwrap_or(rest.len())];
        self.at += digits.len();
        std::str::from_utf8(digits).unwrap_or_default()
    }

    pub fn integer(&mut self) -> Result<i64> {
        let digits = self.digits();
        let whole = |number: f64| number as i64;
        let parsed = digits.parse().ok().or_else(|| digits.parse().ok().map(whole));
        parsed.ok_or_else(|| self.wrong("a number"))
    }

    pub fn number(&mut self) -> Result<f64> {
        self.digits().parse().map_err(|_| self.wrong("a number"))
    }

    pub fn boolean(&mut self) -> Result<bool> {
        match self.peek() {
            Some(b't') if self.literal("true") => Ok(true),
            Some(b'f') if self.literal("false") => Ok(false),
            _ => Err(self.wrong("a boolean")),
        }
    }

    /// Calls for each member of an object with its name, and with this at its value.
    pub fn members(&mut self, mut each: impl FnMut(&[u8], &mut Self) -> Result) -> Result {
        self.expect(b'{', "an object")?;
        if self.take(b'}') {
            return Ok(());
        }
        loop {
            let name = self.string()?;
            self.expect(b':', "a colon")?;
            each(&name, self)?;
            if !self.take(b',') {
                return self.expect(b'}', "the end of an object");
            }
        }
    }

    /// Calls for each element of a list, with this at it.
    pub fn elements(&mut self, mut each: impl FnMut(&mut Self) -> Result) -> Result {
        self.expect(b'[', "a list")?;
        if self.take(b']') {
            return Ok(());
        }
        loop {
            each(self)?;
            if !self.take(b',') {
                return self.expect(b']', "the end of a list");
            }
        }
    }

    /// Passes over any value: its bytes.
    pub fn skip(&mut self) -> Result<&'a [u8]> {
        let (start, mut depth) = (self.at, 0usize);
        loop {
            match self.peek() {
                Some(b'"') => drop(self.skip_string()?),
                Some(b'{' | b'[') => {
                    (depth, self.at) = (depth + 1, self.at + 1);
                    continue;
                }
                // At the end of what is passed over the byte belongs to what is around it.
                Some(b'}' | b']') if depth > 0 => (depth, self.at) = (depth - 1, self.at + 1),
                Some(b',' | b':') if depth > 0 => {
                    self.at += 1;
                    continue;
                }
                Some(b'-' | b'0'..=b'9') => drop(self.digits()),
                Some(b't') if self.literal("true") => {}
                Some(b'f') if self.literal("false") => {}
                Some(b'n') if self.literal("null") => {}
                _ => return Err(self.wrong("a value")),
            }
            if depth == 0 {
                return Ok(&self.bytes[start..self.at]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Walks all of a value.
    fn walk(json: &mut Json<'_>) -> Result {
        match json.peek() {
            Some(b'{') => json.members(|_, json| walk(json)),
            Some(b'[') => json.elements(walk),
            Some(b'"') => json.string().map(drop),
            Some(b't' | b'f') => json.boolean().map(drop),
            _ if json.null() => Ok(()),
            _ => json.number().map(drop),
        }
    }

    #[test]
    fn values_end_where_they_end() {
        let text = r#"{"a":[1,-2.5e3,{}],"b\n\"":{"c":[]},"d":null,"e":true,"f":"\\"}"#;
        let mut json = Json::new(text.as_bytes());
        assert_eq!(json.skip().unwrap(), text.as_bytes());
        json.end().unwrap();
        let mut json = Json::new(text.as_bytes());
        walk(&mut json).unwrap();
        json.end().unwrap();
        let mut names = Vec::new();
        let mut json = Json::new(text.as_bytes());
        json.members(|name, json| {
            names.push(String::from_utf8(name.to_vec()).unwrap());
            json.skip().map(drop)
        })
        .unwrap();
        assert_eq!(names, ["a", "b\n\"", "d", "e", "f"]);
        assert_eq!(Json::new(b"-12,").integer().unwrap(), -12);
        assert_eq!(Json::new(b"3.0").integer().unwrap(), 3);
    }

    proptest! {
        /// Whatever comes, it ends and nothing panics.
        #[test]
        fn other_bytes_are_errors(bytes in proptest::collection::vec(
            proptest::sample::select(&b"{}[]\",:\\ntruefals10-.e "[..]), 0..40,
        )) {
            let _ = Json::new(&bytes).skip();
            let _ = walk(&mut Json::new(&bytes));
        }
    }
}

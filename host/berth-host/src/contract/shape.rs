//! The outside of a component's core modules: how many, how much memory, whether they have names. Walks sections and
//! reads nothing else, so it is quick, and safe on any bytes.

use serde::Serialize;

/// Components nested deeper than this are not walked; wasmtime refuses far less.
const MAX_DEPTH: u32 = 64;

/// What the sections of a component say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// Its core modules.
    pub modules: u32,
    /// Core modules that are programs, with code and data, but without names of functions.
    #[serde(skip)]
    pub nameless: u32,
    /// The memories that its core modules define.
    pub memories: Vec<Memory>,
}

/// The size of a linear memory, in pages of 64 KiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// At the start.
    pub initial_pages: u64,
    /// At most, if the component says.
    pub maximum_pages: Option<u64>,
}

/// Walk a component; nothing if its sections don't fit into each other.
pub fn shape(bytes: &[u8]) -> Option<Shape> {
    let mut shape = Shape::default();
    component(bytes, &mut shape, 0)?;
    Some(shape)
}

/// Whether a core module is made for the preview 1 of WASI.
pub fn is_preview1(module: &[u8]) -> bool {
    let mut found = false;
    let walked = sections(module, |id, mut section| {
        if id == 2 {
            let count = section.number()?;
            // The first import tells: a module of preview 1 has its imports from there.
            if count > 0 {
                let length = usize::try_from(section.number()?).ok()?;
                found |= section.take(length)? == b"wasi_snapshot_preview1";
            }
        }
        Some(())
    });
    walked.is_some() && found
}

fn component(bytes: &[u8], shape: &mut Shape, depth: u32) -> Option<()> {
    if depth > MAX_DEPTH {
        return None;
    }
    // Section ids: component model, Binary.md.
    sections(bytes, |id, section| match id {
        1 => module(section.0, shape),
        4 => component(section.0, shape, depth + 1),
        _ => Some(()),
    })
}

fn module(bytes: &[u8], shape: &mut Shape) -> Option<()> {
    let (mut code, mut names, mut program) = (false, false, false);
    // Section ids: core specification, 5.5.
    sections(bytes, |id, mut section| {
        match id {
            0 => {
                let length = usize::try_from(section.number()?).ok()?;
                if section.take(length)? == b"name" {
                    names |= has_function_names(section);
                }
            }
            5 => {
                program = true;
                for _ in 0..section.number()? {
                    shape.memories.push(section.memory()?);
                }
            }
            10 => code = section.number()? > 0,
            // The modules that tools add to tie others together have no data; they have no names either.
            11 => program = true,
            _ => {}
        }
        Some(())
    })?;
    shape.modules += 1;
    shape.nameless += u32::from(code && program && !names);
    Some(())
}

/// Subsection 1 of the name section.
fn has_function_names(mut section: Bytes<'_>) -> bool {
    while let Some(id) = section.byte() {
        let Some(mut subsection) = section.sized() else {
            return false;
        };
        if id == 1 {
            return subsection.number().is_some_and(|count| count > 0);
        }
    }
    false
}

fn sections(bytes: &[u8], mut each: impl FnMut(u8, Bytes<'_>) -> Option<()>) -> Option<()> {
    let mut rest = Bytes(bytes);
    rest.take(8)?;
    while let Some(id) = rest.byte() {
        each(id, rest.sized()?)?;
    }
    Some(())
}

#[derive(Clone, Copy)]
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    /// An unsigned LEB128.
    fn number(&mut self) -> Option<u64> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// What follows its own length.
    fn sized(&mut self) -> Option<Self> {
        let length = usize::try_from(self.number()?).ok()?;
        self.take(length).map(Self)
    }

    /// A memory type: flags, then sizes. Bit 0 says that there is a maximum, bit 3 that pages have another size.
    fn memory(&mut self) -> Option<Memory> {
        let flags = self.byte()?;
        let initial_pages = self.number()?;
        let maximum_pages = if flags & 1 == 0 {
            None
        } else {
            Some(self.number()?)
        };
        if flags & 8 != 0 {
            self.number()?;
        }
        Some(Memory {
            initial_pages,
            maximum_pages,
        })
    }
}

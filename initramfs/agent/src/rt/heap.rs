//! The heap: free lists by powers of two over a static arena, and pages from the kernel for what is large.
//!
//! The agent has one thread and few objects. The arena costs no system call, and its pages cost nothing until
//! they are touched.
#![allow(unsafe_code)] // An allocator hands out raw memory.

use core::{
    alloc::{GlobalAlloc, Layout},
    cell::UnsafeCell,
    ptr::null_mut,
};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// Bytes served without a system call.
const ARENA: usize = 256 * 1024;
/// What is taken from the kernel when the arena is used up.
const CHUNK: usize = 1024 * 1024;
/// Objects above this size are mappings of their own.
const LARGEST: usize = 128 * 1024;
const SMALLEST: usize = 16;
/// Free lists of 16 bytes to 128 KiB.
const CLASSES: usize = (LARGEST / SMALLEST).trailing_zeros() as usize + 1;

#[repr(align(4096))]
struct Arena(UnsafeCell<[u8; ARENA]>);

// SAFETY: only `Heap` touches it, and the agent has one thread.
unsafe impl Sync for Arena {}

static ARENA_BYTES: Arena = Arena(UnsafeCell::new([0; ARENA]));

struct State {
    /// Unused bytes: from here to `end`.
    next: *mut u8,
    end: *mut u8,
    /// First free object of each class; an object's first word is the next one.
    free: [*mut *mut u8; CLASSES],
}

struct Heap(UnsafeCell<State>);

// SAFETY: the agent has one thread. The child of a spawn shares its memory, but its parent is stopped meanwhile.
unsafe impl Sync for Heap {}

#[global_allocator]
static HEAP: Heap =
    Heap(UnsafeCell::new(State { next: null_mut(), end: null_mut(), free: [null_mut(); CLASSES] }));

fn class(layout: Layout) -> (usize, usize) {
    let size = layout.size().max(layout.align()).max(SMALLEST).next_power_of_two();
    ((size / SMALLEST).trailing_zeros() as usize, size)
}

fn is_large(layout: Layout) -> bool {
    layout.size() > LARGEST || layout.align() > 4096
}

impl State {
    /// `size` fresh bytes aligned to it (to a page at most), or null.
    fn fresh(&mut self, size: usize) -> *mut u8 {
        let align = size.min(4096);
        loop {
            let pad = self.next.align_offset(align);
            let room = self.end as usize - self.next as usize;
            if !self.next.is_null() && pad.saturating_add(size) <= room {
                // SAFETY: both stay within the region, as just compared.
                unsafe {
                    let object = self.next.add(pad);
                    self.next = object.add(size);
                    return object;
                }
            }
            let (start, length) = if self.next.is_null() {
                (ARENA_BYTES.0.get().cast::<u8>(), ARENA)
            } else {
                let chunk = map(CHUNK);
                if chunk.is_null() {
                    return null_mut();
                }
                (chunk, CHUNK)
            };
            self.next = start;
            // SAFETY: one past the end of the region.
            self.end = unsafe { start.add(length) };
        }
    }
}

fn map(length: usize) -> *mut u8 {
    // SAFETY: a private anonymous mapping at an address of the kernel's choice affects nothing that exists.
    let mapped =
        unsafe { mmap_anonymous(null_mut(), length, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    mapped.map_or(null_mut(), |address| address.cast())
}

// SAFETY: objects are disjoint, aligned (classes are powers of two carved at their own alignment, mappings are
// pages), and not given out again before they are freed.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return if layout.align() > 4096 { null_mut() } else { map(layout.size()) };
        }
        let (class, size) = class(layout);
        // SAFETY: one thread, and no reference to the state lives outside these two functions.
        let state = unsafe { &mut *self.0.get() };
        let Some(head) = state.free.get_mut(class) else { return null_mut() };
        if head.is_null() {
            return state.fresh(size);
        }
        let object = *head;
        // SAFETY: `dealloc` wrote the next pointer there, and the object is ours since.
        *head = unsafe { *object }.cast();
        object.cast()
    }

    unsafe fn dealloc(&self, object: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: it was mapped by `alloc` with this length, and the caller gives it up. A failure to unmap
            // only keeps the memory.
            let _ = unsafe { munmap(object.cast(), layout.size()) };
            return;
        }
        let (class, _) = class(layout);
        // SAFETY: as in `alloc`.
        let state = unsafe { &mut *self.0.get() };
        if let Some(head) = state.free.get_mut(class) {
            let object = object.cast::<*mut u8>();
            // SAFETY: the object is at least 16 bytes, aligned to them, and given up by the caller.
            unsafe { *object = head.cast() };
            *head = object;
        }
    }
}

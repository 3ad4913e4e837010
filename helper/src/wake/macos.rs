//! macOS: `IORegisterForSystemPower` of IOKit (IOPMLib.h), on a thread with a run loop of its own.
#![allow(unsafe_code, reason = "IOKit's power notifications have no safe wrapper in the crates we use")]

use std::ffi::c_void;

use core_foundation::base::TCFType;
use core_foundation::runloop::{CFRunLoop, CFRunLoopSource, CFRunLoopSourceRef, kCFRunLoopDefaultMode};
use tokio::sync::mpsc;

/// `IOMessage.h`, `iokit_common_msg(..)`. The first two want an answer within 30 s.
const CAN_SYSTEM_SLEEP: u32 = 0xe000_0270;
const SYSTEM_WILL_SLEEP: u32 = 0xe000_0280;
const SYSTEM_HAS_POWERED_ON: u32 = 0xe000_0300;

type IoObject = u32;
type Callback = extern "C" fn(refcon: *mut c_void, service: IoObject, message: u32, argument: *mut c_void);

#[link(name = "IOKit", kind = "framework")]
unsafe extern "C" {
    fn IORegisterForSystemPower(
        refcon: *mut c_void,
        port: *mut *mut c_void,
        callback: Callback,
        notifier: *mut IoObject,
    ) -> IoObject;
    fn IONotificationPortGetRunLoopSource(port: *mut c_void) -> CFRunLoopSourceRef;
    fn IOAllowPowerChange(kernel: IoObject, notification: isize) -> i32;
}

/// What the callback needs; lives as long as the process.
struct Context {
    kernel: IoObject,
    woken: mpsc::Sender<()>,
}

#[derive(Debug)]
pub(super) struct Wakes(mpsc::Receiver<()>);

impl Wakes {
    pub(super) async fn open() -> Option<Self> {
        // One is enough: several wakes that nobody has seen are one.
        let (woken, told) = mpsc::channel(1);
        std::thread::Builder::new().name("power".into()).spawn(move || listen(woken)).ok()?;
        Some(Self(told))
    }

    pub(super) async fn next(&mut self) {
        if self.0.recv().await.is_none() {
            std::future::pending::<()>().await; // the system tells nobody
        }
    }
}

fn listen(woken: mpsc::Sender<()>) {
    let context = Box::leak(Box::new(Context { kernel: 0, woken }));
    let (mut port, mut notifier) = (std::ptr::null_mut(), 0);
    // SAFETY: the context is never freed, and the callback, its only other user, runs on this thread from the run loop
    // below. The out-pointers are valid for the call.
    context.kernel =
        unsafe { IORegisterForSystemPower((&raw mut *context).cast(), &raw mut port, on_message, &raw mut notifier) };
    if context.kernel == 0 || port.is_null() {
        tracing::warn!("the system does not tell of sleep");
        return;
    }
    // SAFETY: the port is the one just made; its source is borrowed from it ("get rule"), and neither is ever freed.
    let source = unsafe { CFRunLoopSource::wrap_under_get_rule(IONotificationPortGetRunLoopSource(port)) };
    // SAFETY: a constant of the framework.
    CFRunLoop::get_current().add_source(&source, unsafe { kCFRunLoopDefaultMode });
    CFRunLoop::run_current();
}

extern "C" fn on_message(refcon: *mut c_void, _: IoObject, message: u32, argument: *mut c_void) {
    // SAFETY: `refcon` is the leaked context of `listen`, used on its thread only.
    let context = unsafe { &*refcon.cast::<Context>() };
    match message {
        // Sleep is never held up: what is open is found out about at the wake.
        CAN_SYSTEM_SLEEP | SYSTEM_WILL_SLEEP => {
            // SAFETY: the number of this notification, which the answer is for.
            let _ = unsafe { IOAllowPowerChange(context.kernel, argument as isize) };
        }
        SYSTEM_HAS_POWERED_ON => {
            let _ = context.woken.try_send(()); // one that waits says the same
        }
        _ => {}
    }
}

#!/usr/bin/env python3
"""Opens a Mac package and says everything that is wrong with it, one line each (exit code 1).

Python's own library only, and no line of the program that wrote the package: that is what it is for.
    verify.py --version 1.2.3 FILE.pkg
"""
import argparse
import gzip
import hashlib
import plistlib
import re
import struct
import sys
import xml.etree.ElementTree as ElementTree
import zlib

LARGEST_BYTES = 30_000_000
MINIMUM = "13.0"
COMPONENT = "net.culvert.pkg"
HELPER = "Library/PrivilegedHelperTools/net.culvert.helper"
DAEMON = "Library/LaunchDaemons/net.culvert.daemon.plist"
APP = "Applications/Culvert.app"
# Program: its identifier, in __info_plist and in the signature. The app's is in its Info.plist.
PROGRAMS = {
    HELPER: "net.culvert.helper",
    "usr/local/bin/culvert": "net.culvert.ctl",
    f"{APP}/Contents/MacOS/culvert-helper": "net.culvert.helper",
    f"{APP}/Contents/MacOS/culvert": "net.culvert.ctl",
    f"{APP}/Contents/MacOS/Culvert": None,
}
PROCESSORS = {0x01000007: "x86_64", 0x0100000C: "arm64"}
OUTSIDE = re.compile(r"(/System/Library/Frameworks/|/usr/lib/)")
LEAVINGS = re.compile(r"(^|/)(\._|\.DS_Store$|__MACOSX(/|$))")

wrong = []


def complain(text):
    if text not in wrong:
        wrong.append(text)


def check(good, text):
    if not good:
        complain(text)
    return good


class Unreadable(Exception):
    """What follows cannot be read."""


# The container.


def read_xar(data):
    """{path: bytes} of a xar file, and whether it is signed."""
    if data[:4] != b"xar!":
        raise Unreadable("it is no xar file")
    size, version, packed, unpacked, checksum = struct.unpack(">HHQQI", data[4:28])
    check(version == 1 and checksum == 1, f"xar: version {version}, checksum {checksum}")
    table = data[size : size + packed]
    heap = data[size + packed :]
    check(heap[:20] == hashlib.sha1(table).digest(), "xar: the table of contents has another checksum: damaged or changed")
    try:
        text = zlib.decompress(table)
    except zlib.error as error:
        raise Unreadable(f"xar: table of contents: {error}")
    check(len(text) == unpacked, "xar: the table of contents has another length")
    toc = ElementTree.fromstring(text).find("toc")
    members = {}

    def descend(element, above):
        for file in element.findall("file"):
            path = above + file.findtext("name")
            check(not LEAVINGS.search(path), f"{path}: left by Finder")
            check(file.find("ea") is None, f"{path}: has extended attributes (a quarantine?)")
            if file.findtext("type") == "directory":
                descend(file, path + "/")
                continue
            place = file.find("data")
            start, length = int(place.findtext("offset")), int(place.findtext("length"))
            stored = heap[start : start + length]
            check(len(stored) == length, f"{path}: cut off")
            check(hashlib.sha1(stored).hexdigest() == place.findtext("archived-checksum"), f"{path}: damaged (checksum)")
            if place.find("encoding").get("style") == "application/x-gzip":
                stored = zlib.decompress(stored)
            members[path] = stored

    descend(toc, "")
    return members, toc.find("signature") is not None or toc.find("x-signature") is not None


def read_cpio(data, what):
    """[(path, mode, uid, gid, bytes)] of an odc archive in gzip."""
    try:
        data = gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise Unreadable(f"{what}: {error}")
    found, at = [], 0
    while True:
        if data[at : at + 6] != b"070707":
            raise Unreadable(f"{what}: no cpio header at {at}")
        field = lambda start, length: int(data[at + start : at + start + length], 8)
        mode, uid, gid, name, size = field(18, 6), field(24, 6), field(30, 6), field(59, 6), field(65, 11)
        start = at + 76 + name
        path = data[at + 76 : start - 1].decode()
        if path == "TRAILER!!!":
            return found
        at = start + size
        found.append((path.removeprefix("./").removeprefix("."), mode, uid, gid, data[start:at]))


def read_bom(data):
    """{path: (mode, uid, gid, size, checksum)} of a bill of materials."""
    if data[:8] != b"BOMStore":
        raise Unreadable("Bom: not a bill of materials")
    index, _, names, _ = struct.unpack(">IIII", data[16:32])
    block = lambda number: data[slice(*(lambda at, size: (at, at + size))(*struct.unpack(">II", data[index + 4 + 8 * number :][:8])))]
    count, at, named = struct.unpack(">I", data[names : names + 4])[0], names + 4, {}
    for _ in range(count):
        number, length = struct.unpack(">IB", data[at : at + 5])
        named[data[at + 5 : at + 5 + length].decode()] = number
        at += 5 + length
    check(set(named) >= {"BomInfo", "Paths", "HLIndex", "VIndex", "Size64"}, f"Bom: has only {sorted(named)}")
    leaf = block(struct.unpack(">4sII", block(named["Paths"])[:12])[2])
    while not struct.unpack(">H", leaf[:2])[0]:
        leaf = block(struct.unpack(">I", leaf[12:16])[0])
    files, records = {}, {}
    while True:
        _, count, forward, _ = struct.unpack(">HHII", leaf[:12])
        for place in range(count):
            number, name = struct.unpack(">II", leaf[12 + 8 * place : 20 + 8 * place])
            identifier, record = struct.unpack(">II", block(number))
            key = block(name)
            files[identifier] = (struct.unpack(">I", key[:4])[0], key[4:-1].decode())
            _, _, _, mode, uid, gid, _, size, _, sum_ = struct.unpack(">BBHHIIIIBI", block(record)[:27])
            records[identifier] = (mode, uid, gid, size, sum_)
        if not forward:
            break
        leaf = block(forward)

    def path(identifier):
        parent, name = files[identifier]
        return f"{path(parent)}/{name}".lstrip("/") if parent else ""

    return {path(identifier): record for identifier, record in records.items()}


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def cksum(data):
    """As cksum(1): zlib's sum with the bits the other way round, over the length, too."""
    length = len(data)
    data += length.to_bytes((length.bit_length() + 7) // 8, "little")
    return int(f"{zlib.crc32(data.translate(REVERSED), 0xFFFFFFFF):032b}"[::-1], 2)


# Programs.


def slices(path, data):
    if data[:4] != b"\xca\xfe\xba\xbe":
        return [data]
    found = []
    for place in range(struct.unpack(">I", data[4:8])[0]):
        _, _, offset, size, alignment = struct.unpack(">IIIII", data[8 + 20 * place : 28 + 20 * place])
        check(offset % (1 << alignment) == 0 and alignment >= 12, f"{path}: a slice is not on a page of its own")
        found.append(data[offset : offset + size])
    return found


def check_slice(path, data, version):
    """What one processor's program says of itself; returns the processor."""
    magic, cpu, _, kind, count, _, flags, _ = struct.unpack("<8I", data[:32])
    if magic != 0xFEEDFACF:
        raise Unreadable(f"{path}: a slice is no 64-bit Mach-O program")
    processor = PROCESSORS.get(cpu)
    check(processor, f"{path}: for processor {cpu:#x}, which no Mac has")
    what = f"{path} ({processor})"
    check(kind == 2, f"{what}: not a program (type {kind})")
    check(flags & 0x200000, f"{what}: not position-independent")
    at, minimum, info, signature = 32, None, None, None
    for _ in range(count):
        command, size = struct.unpack("<II", data[at : at + 8])
        body = data[at : at + size]
        if command == 0x32:
            platform, least = struct.unpack("<II", body[8:16])
            minimum = f"{least >> 16}.{least >> 8 & 255}" if platform == 1 else f"platform {platform}"
        elif command == 0x24:
            least = struct.unpack("<I", body[8:12])[0]
            minimum = f"{least >> 16}.{least >> 8 & 255}"
        elif command & 0x7FFFFFFF in (0xC, 0x18, 0x1F, 0x20, 0x23):
            library = body[struct.unpack("<I", body[8:12])[0] :].split(b"\0")[0].decode()
            check(OUTSIDE.match(library), f"{what}: needs {library}, which is not of macOS")
        elif command & 0x7FFFFFFF == 0x1C:
            complain(f"{what}: looks for libraries elsewhere (LC_RPATH)")
        elif command & 0x7FFFFFFF == 0x27:
            complain(f"{what}: changes its environment (LC_DYLD_ENVIRONMENT)")
        elif command == 0x1D:
            signature = data[slice(*(lambda start, length: (start, start + length))(*struct.unpack("<II", body[8:16])))]
        elif command == 0x19:
            for place in range(struct.unpack("<I", body[64:68])[0]):
                section = body[72 + 80 * place :]
                if section[:16].rstrip(b"\0") == b"__info_plist":
                    length, offset = struct.unpack("<QI", section[40:52])
                    info = data[offset : offset + length]
        at += size
    check(minimum == MINIMUM, f"{what}: for macOS {minimum}, not {MINIMUM}")
    if PROGRAMS[path]:
        check_info(what, info, PROGRAMS[path], version)
    if signature is None:
        check(processor != "arm64", f"{what}: has no signature at all, not even its own; such a Mac would not start it")
    else:
        check_pages(what, data, signature)
    return processor


def check_info(what, info, identifier, version):
    try:
        info = plistlib.loads((info or b"").rstrip(b"\0"))  # linkers fill up to their alignment
    except Exception:  # plistlib raises expat's and its own
        return complain(f"{what}: has no readable __info_plist")
    check(info.get("CFBundleIdentifier") == identifier, f"{what}: __info_plist has the identifier {info.get('CFBundleIdentifier')}, not {identifier}")
    for key in ("CFBundleVersion", "CFBundleShortVersionString"):
        check(info.get(key) == version, f"{what}: __info_plist has {key} {info.get(key)}, not {version}")


def check_pages(what, data, signature):
    """The hashes of a code directory, against the program's pages."""
    magic, _, count = struct.unpack(">III", signature[:12])
    check(magic == 0xFADE0CC0, f"{what}: unreadable signature")
    for place in range(count):
        kind, offset = struct.unpack(">II", signature[12 + 8 * place : 20 + 8 * place])
        directory = signature[offset:]
        if kind != 0 or struct.unpack(">I", directory[:4])[0] != 0xFADE0C02:
            continue
        hashes, _, _, pages, limit = struct.unpack(">5I", directory[16:36])
        size, algorithm, _, page = struct.unpack("4B", directory[36:40])
        digest = {1: hashlib.sha1, 2: hashlib.sha256}[algorithm]
        for number in range(pages):
            piece = data[number << page : min((number + 1) << page, limit)]
            if digest(piece).digest()[:size] != directory[hashes + size * number :][:size]:
                return complain(f"{what}: page {number} is not what was signed")
        return None
    return complain(f"{what}: a signature without a code directory")


# The parts.


def check_payload(payload, version):
    """Every file; returns the processors of the programs."""
    processors = None
    paths = {path: data for path, _, _, _, data in payload}
    for path, mode, uid, gid, data in payload:
        shown = path or "the root"
        check((uid, gid) == (0, 0), f"{shown}: belongs to {uid}:{gid}, not to root:wheel")
        check(not mode & 0o7022 or mode >> 12 == 0o12, f"{shown}: mode {mode & 0o7777:04o}: others may change it, or it runs as somebody else")
        check(not LEAVINGS.search(path), f"{path}: left by Finder")
        if mode >> 12 == 0o12:
            target = data.decode()
            check(target.lstrip("/") in paths, f"{path}: a link to {target}, which is not in the package")
        elif path in PROGRAMS:
            check(mode & 0o111 == 0o111, f"{path}: mode {mode & 0o7777:04o}: a program that nobody may run")
            found = {check_slice(path, part, version) for part in slices(path, data)}
            check(processors in (None, found), f"{path}: for {sorted(found)}, other programs for {sorted(processors or ())}")
            processors = processors or found
        elif data[:4] in (b"\xcf\xfa\xed\xfe", b"\xca\xfe\xba\xbe"):
            complain(f"{path}: a program that the package does not know")
    check(HELPER in paths, f"{HELPER}: missing")
    check_daemon(paths)
    if f"{APP}/Contents/MacOS/Culvert" in paths:
        check_app(paths, version)
    return processors or set()


def check_daemon(paths):
    try:
        daemon = plistlib.loads(paths[DAEMON])
    except Exception:
        return complain(f"{DAEMON}: missing or unreadable")
    check(daemon.get("Label") == "net.culvert.daemon", f"{DAEMON}: has the label {daemon.get('Label')}")
    program = (daemon.get("ProgramArguments") or [""])[0]
    check(program == f"/{HELPER}", f"{DAEMON}: starts {program}, not /{HELPER}")
    return None


def check_app(paths, version):
    try:
        info = plistlib.loads(paths[f"{APP}/Contents/Info.plist"])
    except Exception:
        return complain(f"{APP}: its Info.plist is missing or unreadable")
    expected = {
        "CFBundleIdentifier": "net.culvert.app",
        "CFBundleExecutable": "Culvert",
        "CFBundleVersion": version,
        "CFBundleShortVersionString": version,
        "LSMinimumSystemVersion": MINIMUM,
    }
    for key, value in expected.items():
        check(info.get(key) == value, f"{APP}: {key} is {info.get(key)}, not {value}")
    check(f"{APP}/Contents/Library/LaunchDaemons/net.culvert.helper.plist" in paths, f"{APP}: launchd's file is missing")
    return None


def check_bom(bom, payload):
    expected = {}
    for path, mode, uid, gid, data in payload:
        is_folder = mode >> 12 == 0o4
        expected[path] = (mode, uid, gid, 0 if is_folder else len(data), 0 if is_folder else cksum(data))
    for path in sorted(set(bom) ^ set(expected)):
        complain(f"{path or 'the root'}: only in the {'bill of materials' if path in bom else 'payload'}")
    for path in sorted(set(bom) & set(expected)):
        check(bom[path] == expected[path], f"{path or 'the root'}: the bill of materials says {bom[path]}, the payload {expected[path]}")


def check_scripts(scripts, info):
    files = {path: (mode, data) for path, mode, _, _, data in scripts if path}
    named = {element.tag: element.get("file") for element in info.find("scripts")}
    check(set(files) == {"preinstall", "postinstall", "version"}, f"Scripts: {sorted(files)}")
    told = files.pop("version", (0, b""))[1].decode(errors="replace").strip()
    check(told == info.get("version"), f"Scripts: version says {told}, PackageInfo {info.get('version')}")
    for name, file in named.items():
        check(file == f"./{name}" and name in files, f"Scripts: PackageInfo names {file}, which is not there")
    for name, (mode, data) in files.items():
        check(name in named, f"Scripts: {name} is in no line of PackageInfo, and would not run")
        check(mode & 0o111 and data[:7] == b"#!/bin/", f"Scripts: {name} cannot be run")
        check(b"osascript" not in data, f"Scripts: {name} shows dialogs (osascript); nobody may be there to answer")


def check_information(info, version, payload):
    expected = {"identifier": COMPONENT, "version": version, "auth": "root", "install-location": "/", "relocatable": "false"}
    for key, value in expected.items():
        check(info.get(key) == value, f"PackageInfo: {key} is {info.get(key)}, not {value}")
    check(int(info.find("payload").get("numberOfFiles")) == len(payload), "PackageInfo: another number of files than the payload")


def check_distribution(xml, version, members, processors):
    options, least = xml.find("options"), xml.find("volume-check/allowed-os-versions/os-version")
    found = least.get("min") if least is not None else None
    check(found == MINIMUM, f"Distribution: for macOS {found}, not {MINIMUM}")
    told = set((options.get("hostArchitectures") or "").split(",")) if options is not None else set()
    check(told == processors, f"Distribution: for {sorted(told)}, but the programs are for {sorted(processors)}")
    check(options is not None and options.get("customize") == "never", "Distribution: lets people choose parts")
    domains = xml.find("domains")
    check(domains is not None and domains.get("enable_currentUserHome") == "false", "Distribution: lets people install it for themselves alone")
    for name in ("welcome", "license"):
        file = xml.find(name)
        check(file is not None and f"Resources/{file.get('file')}" in members, f"Distribution: no {name} text")
    for reference in xml.iter("pkg-ref"):
        check(reference.get("id") == COMPONENT, f"Distribution: names {reference.get('id')}, not {COMPONENT}")
        if reference.text:
            check(reference.get("version") == version, f"Distribution: version {reference.get('version')}, not {version}")
            check(f"{reference.text.strip().lstrip('#')}/PackageInfo" in members, f"Distribution: {reference.text} is not in the package")


def document(members, name):
    try:
        return ElementTree.fromstring(members[name])
    except KeyError:
        raise Unreadable(f"{name}: missing")
    except ElementTree.ParseError as error:
        raise Unreadable(f"{name}: {error}")


def verify(file, version):
    with open(file, "rb") as opened:
        data = opened.read()
    check(len(data) <= LARGEST_BYTES, f"{len(data)} bytes are more than {LARGEST_BYTES}")
    members, signed = read_xar(data)
    check(signed != file.endswith("-unsigned.pkg"), "its name says unsigned, and it is signed" if signed else "nobody has signed it, and its name does not say so")
    parts = [name.removesuffix("PackageInfo") for name in members if name.endswith("/PackageInfo")]
    if len(parts) != 1:
        raise Unreadable(f"{len(parts)} components in it, not one")
    for name in ("Bom", "Payload", "Scripts"):
        if parts[0] + name not in members:
            raise Unreadable(f"{name}: missing")
    payload = read_cpio(members[parts[0] + "Payload"], "Payload")
    info = document(members, parts[0] + "PackageInfo")
    processors = check_payload(payload, version)
    check_bom(read_bom(members[parts[0] + "Bom"]), payload)
    check_scripts(read_cpio(members[parts[0] + "Scripts"], "Scripts"), info)
    check_information(info, version, payload)
    check_distribution(document(members, "Distribution"), version, members, processors)
    has_app = any(path.startswith(APP) for path, *_ in payload)
    check(has_app or "-helper" in file, "there is no app in it, and its name does not say so")
    app = "app, helper and command" if has_app else "helper and command, no app"
    return f"version {version}, {len(payload)} paths, {len(data)} bytes, {' and '.join(sorted(processors))}, {'signed' if signed else 'unsigned'}: {app}"


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--version", required=True)
    arguments.add_argument("package")
    arguments = arguments.parse_args()
    try:
        summary = verify(arguments.package, arguments.version)
    except Unreadable as error:
        complain(str(error))
    except (struct.error, IndexError, KeyError, ValueError, AttributeError) as error:
        complain(f"unreadable: {type(error).__name__}: {error}")
    except OSError as error:
        complain(str(error))
    for line in wrong:
        print(f"  {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(summary)


if __name__ == "__main__":
    main()

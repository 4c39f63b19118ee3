"""PTX text to instructions: one entry of a module, with its parameters, shared symbols, labels and registers."""

import re
from typing import NamedTuple

from .faults import Fault
from .values import width


class Instruction(NamedTuple):
    """`parts`: the opcode split at its dots; guard: the predicate's register, or None; text: as written."""

    parts: list[str]
    operands: list[str]
    guard: str | None
    negated: bool
    text: str

    @property
    def type(self) -> str:
        return self.parts[-1]

    @property
    def space(self) -> str:
        """The state space of a memory access; a generic address is taken for a global one."""
        spaces = ("global", "shared", "param", "local", "const")
        return next((p.split("::")[0] for p in self.parts if p.split("::")[0] in spaces), "global")


class Parameter(NamedTuple):
    offset: int
    size: int
    type: str


class SharedSymbol(NamedTuple):
    """A declaration in shared memory; `dynamic`: its size is given at launch."""

    name: str
    alignment: int
    size: int
    dynamic: bool


class Program(NamedTuple):
    """registers: the bits of each by name; labels: the number of the instruction behind each."""

    instructions: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, int]
    parameters: dict[str, Parameter]
    parameter_bytes: int
    shared: list[SharedSymbol]

    def smallest_access(self, space: str) -> int:
        """Bytes of the smallest access to a space, at most 4: the unit in which races are looked for."""
        found = [4]
        for i in self.instructions:
            if i.parts[0] in ("ld", "st") and i.space == space:
                values = i.operands[0 if i.parts[0] == "ld" else 1]
                found.append(width(i.type) // 8 * (values.count(",") + 1))
        return min(found)


def parse(text: str, entry: str | None) -> Program:
    """The entry named, or the first one."""
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^\s*\.(loc|file|pragma|version|target|address_size)\b[^\n]*", "", text, flags=re.M)
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text))
    wanted = [e for e in entries if entry is None or e[1] == entry]
    if not wanted:
        raise Fault(f"no entry {entry}; the module has {[e[1] for e in entries]}")
    module_symbols = [shared_symbol(s.strip()) for s in text[: entries[0].start()].split(";")]
    parameters, parameter_bytes = _parameters(wanted[0][2])
    body = _Body()
    body.read(text, wanted[0].end())
    shared = [s for s in module_symbols if s] + body.shared
    return Program(body.instructions, body.labels, body.registers, parameters, parameter_bytes, shared)


def shared_symbol(statement: str) -> SharedSymbol | None:
    found = re.match(
        r"(?:\.(?:visible|extern|weak)\s+)*\.shared\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d*)\])?",
        statement,
    )
    if not found:
        return None
    alignment, element, name, length = found.groups()
    dynamic = length == ""
    size = width(element) // 8 * int(length or not dynamic)
    return SharedSymbol(name, int(alignment or 4), size, dynamic)


def _parameters(text: str) -> tuple[dict[str, Parameter], int]:
    parameters, end = {}, 0
    for declaration in filter(None, (p.strip() for p in text.split(","))):
        found = re.match(
            r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr.*?\s)?(?:\.global\s+)?(?:\.align\s+\d+\s+)?"
            r"([\w$]+)(?:\[(\d+)\])?$",
            declaration,
        )
        if not found:
            raise Fault(f"cannot read the parameter {declaration!r}")
        alignment, kind, name, length = found.groups()
        size = width(kind) // 8 * int(length or 1)
        alignment = int(alignment or width(kind) // 8)
        offset = -(-end // alignment) * alignment
        parameters[name] = Parameter(offset, size, kind)
        end = offset + size
    return parameters, end


class _Body:
    """A function's statements. Registers of an inner scope are renamed, `name#number`."""

    def __init__(self):
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, int] = {}
        self.shared: list[SharedSymbol] = []
        self._scopes: list[dict[str, str]] = [{}]
        self._scope_number = 0

    def read(self, text: str, at: int):
        pending = ""
        while self._scopes:
            character, statement = text[at], pending.strip()
            at += 1
            if character == "{" and not statement:
                self._scope_number += 1
                self._scopes.append({})
            elif character == "}" and not statement:
                self._scopes.pop()
            elif character == ":" and re.fullmatch(r"[\w$]+", statement) and text[at] != ":":
                self.labels[statement] = len(self.instructions)
            elif character == ";":
                self._statement(statement)
            else:
                pending += character
                continue
            pending = ""

    def _statement(self, statement: str):
        if statement.startswith(".reg"):
            self._declare(statement)
        elif statement.startswith(".shared"):
            self.shared.append(shared_symbol(statement))
        elif not statement.startswith("."):
            self._instruction(statement)

    def _declare(self, statement: str):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()
        for name in (n.strip() for n in names.split(",")):
            series = re.match(r"([%\w$]+)<(\d+)>", name)
            for register in [f"{series[1]}{k}" for k in range(int(series[2]))] if series else [name]:
                unique = register if len(self._scopes) == 1 else f"{register}#{self._scope_number}"
                self._scopes[-1][register] = unique
                self.registers[unique] = width(kind)

    def _instruction(self, statement: str):
        found = re.match(r"(?:@(!?)([%\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.S)
        negation, guard, opcode, rest = found.groups()
        operands = [re.sub(r"[%\w$]+", lambda name: self._unique(name[0]), o) for o in _split(rest)]
        guard = self._unique(guard) if guard else None
        text = " ".join(statement.split())
        self.instructions.append(Instruction(opcode.split("."), operands, guard, negation == "!", text))

    def _unique(self, name: str) -> str:
        return next((scope[name] for scope in reversed(self._scopes) if name in scope), name)


def _split(operands: str) -> list[str]:
    """At the commas outside of brackets."""
    found, depth, current = [], 0, ""
    for character in operands:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            found.append(current.strip())
            current = ""
        else:
            current += character
    return [*found, current.strip()] if current.strip() else found

"""PTX text to instructions: one entry of a module, with its parameters, symbols, labels and registers.

Functions that it calls are put in the place of the call; their parameters are registers.
"""

import re
from functools import lru_cache
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


class Table(NamedTuple):
    """Bytes that the module puts into global memory."""

    name: str
    values: bytes


class Function(NamedTuple):
    """Names of what it returns and takes; body: where it begins in the module's text."""

    returned: list[str]
    taken: list[str]
    body: int


class Program(NamedTuple):
    """registers: the bits of each by name; labels: the number of the instruction behind each; local: where each symbol
    lies in a thread's local memory."""

    instructions: list[Instruction]
    labels: dict[str, int]
    registers: dict[str, int]
    parameters: dict[str, Parameter]
    parameter_bytes: int
    shared: list[SharedSymbol]
    local: dict[str, int]
    local_bytes: int
    tables: list[Table]

    def smallest_access(self, space: str) -> int:
        """Bytes of the smallest access to a space, at most 4: the unit in which races are looked for."""
        found = [4]
        for i in self.instructions:
            if i.parts[0] in ("ld", "st") and i.space == space:
                values = i.operands[0 if i.parts[0] == "ld" else 1]
                found.append(width(i.type) // 8 * (values.count(",") + 1))
        return min(found)


class _Module(NamedTuple):
    """A module's text without comments; head: its declarations, before the first entry."""

    text: str
    entries: list[re.Match]
    functions: dict[str, Function]
    head: list[str]


@lru_cache(8)
def _module(text: str) -> _Module:
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    text = re.sub(r"^\s*\.(loc|file|pragma|version|target|address_size)\b[^\n]*", "", text, flags=re.M)
    entries = list(re.finditer(r"\.entry\s+([\w$]+)\s*\(([^)]*)\)([^{]*)\{", text))
    functions = {}
    for found in re.finditer(r"\.func\s+(?:\(([^)]*)\)\s*)?([\w$]+)\s*(?:\(([^)]*)\))?[^{;]*\{", text):
        returned, taken = (re.findall(r"([\w$]+)(?:\[\d+\])?\s*(?:,|$)", part or "") for part in found.group(1, 3))
        functions[found[2]] = Function(returned, taken, found.end())
    head = text[: entries[0].start()] if entries else text
    return _Module(text, entries, functions, [s.strip() for s in head.split(";")])


def parse(text: str, entry: str | None) -> Program:
    """The entry named, or the first one."""
    module = _module(text)
    wanted = [e for e in module.entries if entry is None or e[1] == entry]
    if not wanted:
        raise Fault(f"no entry {entry}; the module has {[e[1] for e in module.entries]}")
    parameters, parameter_bytes = _parameters(wanted[0][2])
    body = _Body(module)
    body.read(wanted[0].end())
    shared = [s for s in map(shared_symbol, module.head) if s] + body.shared
    named = {name for op in body.instructions for operand in op.operands for name in re.findall(r"[\w$]+", operand)}
    tables = [t for t in map(_table, module.head) if t and t.name in named]
    return Program(
        body.instructions, body.labels, body.registers, parameters, parameter_bytes, shared, body.local,
        body.local_bytes, tables,
    )  # fmt: skip


def _table(statement: str) -> Table | None:
    found = re.match(
        r"(?:\.(?:visible|extern|weak)\s+)*\.global\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[\d+\])?\s*"
        r"=\s*\{?([^}]*)\}?$",
        statement,
    )
    if not found:
        return None
    element, name, values = found.groups()
    size = width(element) // 8
    numbers = [int(value, 0) & ((1 << 8 * size) - 1) for value in values.split(",")]
    return Table(name, b"".join(number.to_bytes(size, "little") for number in numbers))


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
    """A function's statements. Names of an inner scope are made unique, `name#number`."""

    def __init__(self, module: _Module):
        self._module = module
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.registers: dict[str, int] = {}
        self.shared: list[SharedSymbol] = []
        self.local: dict[str, int] = {}
        self.local_bytes = 0
        self._scopes: list[dict[str, str]] = [{}]
        self._scope_number = 0
        self._passed: set[str] = set()  # what functions are given and give: registers, in place of their .param
        self._ends: list[str] = []  # of the functions that are being called: where `ret` leads

    def read(self, at: int):
        """From behind a brace to the one that closes it."""
        text, pending, depth = self._module.text, "", len(self._scopes)
        while len(self._scopes) >= depth:
            character, statement = text[at], pending.strip()
            at += 1
            if character == "{" and not statement:
                self._enter()
            elif character == "}" and not statement:
                self._scopes.pop()
            elif character == ":" and re.fullmatch(r"[\w$]+", statement) and text[at] != ":":
                self.labels[self._unique(statement)] = len(self.instructions)
            elif character == ";":
                self._statement(statement)
            else:
                pending += character
                continue
            pending = ""

    def _enter(self):
        self._scope_number += 1
        self._scopes.append({})

    def _statement(self, statement: str):
        if statement.startswith(".reg"):
            self._declare(statement)
        elif statement.startswith(".shared"):
            self.shared.append(shared_symbol(statement))
        elif statement.startswith(".local"):
            self._declare_local(statement)
        elif statement.startswith(".param"):
            self._passed.add(self._bind(re.search(r"([\w$]+)(?:\[\d+\])?$", statement)[1]))
        elif not statement.startswith("."):
            self._instruction(statement)

    def _bind(self, name: str) -> str:
        unique = name if len(self._scopes) == 1 else f"{name}#{self._scope_number}"
        self._scopes[-1][name] = unique
        return unique

    def _declare(self, statement: str):
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", statement, re.S).groups()
        for name in (n.strip() for n in names.split(",")):
            series = re.match(r"([%\w$]+)<(\d+)>", name)
            for register in [f"{series[1]}{k}" for k in range(int(series[2]))] if series else [name]:
                self.registers[self._bind(register)] = width(kind)

    def _declare_local(self, statement: str):
        found = re.match(r"\.local\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+([\w$]+)\s*(?:\[(\d+)\])?$", statement)
        alignment, element, name, length = found.groups()
        start = -(-self.local_bytes // int(alignment or 16)) * int(alignment or 16)
        self.local[self._bind(name)] = start
        self.local_bytes = start + width(element) // 8 * int(length or 1)

    def _instruction(self, statement: str):
        found = re.match(r"(?:@(!?)([%\w$]+)\s+)?([\w.:]+)\s*(.*)$", statement, re.S)
        negation, guard, opcode, rest = found.groups()
        guard = self._unique(guard) if guard else None
        parts, text = opcode.split("."), " ".join(statement.split())
        if parts[0] == "call":
            if guard:
                raise Fault(f"a call under a guard is not modelled | {text}")
            return self._call(_split(rest), text)
        operands = [re.sub(r"[%\w$]+", lambda name: self._unique(name[0]), o) for o in _split(rest)]
        if parts[0] == "ret" and self._ends:
            parts, operands = ["bra"], [self._ends[-1]]
        elif parts[0] in ("ld", "st") and "param" in parts:
            parts, operands = self._passing(parts, operands)
        self.instructions.append(Instruction(parts, operands, guard, negation == "!", text))

    def _passing(self, parts: list[str], operands: list[str]) -> tuple[list[str], list[str]]:
        """ld.param and st.param of what a function is given or gives, as a move; the entry's own stay as they are."""
        place = operands[1 if parts[0] == "ld" else 0].strip("[] ")
        base, _, offset = place.partition("+")
        if base.strip() not in self._passed:
            return parts, operands
        register, bits = f"{base.strip()}+{int(offset or '0', 0)}", width(parts[-1])
        if self.registers.setdefault(register, bits) != bits or any(o.startswith("{") for o in operands):
            raise Fault(f"a parameter of a function that is read otherwise than written is not modelled | {place}")
        return ["mov", parts[-1]], [register, operands[1]] if parts[0] == "st" else [operands[0], register]

    def _call(self, operands: list[str], text: str):
        """The function's statements, its names bound to what it is given."""
        returned = _split(operands.pop(0).strip("() ")) if operands[0].startswith("(") else []
        name, given = operands[0], _split(operands[1].strip("() ")) if len(operands) > 1 else []
        function = self._module.functions.get(name)
        if function is None or len(self._ends) > 8:
            raise Fault(f"a call of what is not in the module, or of itself, is not modelled | {text}")
        outside = [self._unique(n) for n in returned + given]
        end = f"end of {name}#{self._scope_number + 1}"
        self._enter()
        self._scopes[-1].update(zip(function.returned + function.taken, outside, strict=True))
        for label in re.findall(r"^([\w$]+):", self._text_of(function), re.M):
            self._bind(label)
        self._ends.append(end)
        self.read(function.body)
        self._ends.pop()
        self.labels[end] = len(self.instructions)

    def _text_of(self, function: Function) -> str:
        text = self._module.text
        return text[function.body : text.index("\n}", function.body)]

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

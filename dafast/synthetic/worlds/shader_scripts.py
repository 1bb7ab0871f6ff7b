"""Shader scripts of Quake 3: how the surfaces of a map look."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from dafast.synthetic.worlds.packs import Pack

_TOKEN = re.compile(r'//[^\n]*|/\*.*?\*/|"([^"\n]*)"|([{}])|(\n)|([^\s{}"]+)', re.DOTALL)


@dataclass
class SurfaceShader:
    """The properties of a shader that the renderer uses.

    Attributes:
        images: pictures of its surface, without suffix; the first that exists is the right one.
        parameters: the words after ``surfaceparm``.
        opaque: whether the first layer hides what is behind it.
        alpha_test: whether the picture's alpha channel cuts holes.
        glows: whether the surface shines by itself.
    """

    images: list[str] = field(default_factory=list)
    parameters: set[str] = field(default_factory=set)
    opaque: bool = True
    alpha_test: bool = False
    glows: bool = False


@dataclass
class _Stage:
    images: list[str] = field(default_factory=list)
    blends: bool = False
    alpha_test: bool = False
    environment: bool = False


def _lines(text: str) -> list[list[str]]:
    """The words of each line; braces are lines of their own."""
    lines: list[list[str]] = [[]]
    for match in _TOKEN.finditer(text):
        quoted, brace, newline, word = match.groups()
        if brace:
            lines += [[brace], []]
        elif newline:
            lines.append([])
        elif quoted is not None or word:
            lines[-1].append(quoted if quoted is not None else word)
    return [line for line in lines if line]


def stem(name: str) -> str:
    """A picture's name without its suffix, lower case."""
    name = name.lower().replace("\\", "/")
    return name[:-4] if name.endswith((".tga", ".jpg", ".png")) else name


def _finish(name: str, shader: SurfaceShader, stages: list[_Stage], editor: str) -> None:
    """Decides on picture and opacity from the stages."""
    if stages:
        first = stages[0]
        shader.alpha_test = any(stage.alpha_test for stage in stages)
        shader.opaque = not first.blends or shader.alpha_test
    layers = [image for s in stages if not s.environment for image in s.images]
    shader.images = [stem(image) for image in [*layers, editor, name] if image]


def parse(text: str) -> dict[str, SurfaceShader]:
    """The shaders of a script, by name in lower case."""
    shaders: dict[str, SurfaceShader] = {}
    depth, name, editor = 0, "", ""
    shader, stages = SurfaceShader(), list[_Stage]()
    for line in _lines(text):
        word = line[0].lower()
        if word == "{":
            depth += 1
            if depth == 2:
                stages.append(_Stage())
        elif word == "}":
            depth = max(depth - 1, 0)
            if depth == 0 and name:
                _finish(name, shader, stages, editor)
                shaders.setdefault(name, shader)
                name, editor, shader, stages = "", "", SurfaceShader(), []
        elif depth == 0:
            name = stem(line[0])
        elif depth == 1:
            if word == "surfaceparm" and len(line) > 1:
                shader.parameters.add(line[1].lower())
            elif word == "qer_editorimage" and len(line) > 1:
                editor = line[1]
            elif word in ("q3map_surfacelight", "dpglow"):
                shader.glows = True
        else:
            _read_stage(stages[-1], line)
    return shaders


def _read_stage(stage: _Stage, line: list[str]) -> None:
    word, rest = line[0].lower(), [x.lower() for x in line[1:]]
    if word in ("map", "clampmap") and rest and not rest[0].startswith("$"):
        stage.images.append(rest[0])
    elif word == "animmap" and len(rest) > 1:
        stage.images.append(rest[1])
    elif word == "blendfunc" and rest:
        stage.blends = rest[:2] not in (["gl_one", "gl_zero"], ["one", "zero"])
    elif word == "alphafunc":
        stage.alpha_test = True
    elif word in ("tcgen", "texgen") and rest[:1] == ["environment"]:
        stage.environment = True


def read_shaders(pack: Pack) -> dict[str, SurfaceShader]:
    """All shaders of a game."""
    shaders: dict[str, SurfaceShader] = {}
    for name in pack.names("scripts/", ".shader"):
        for key, shader in parse(pack.read(name).decode("latin-1")).items():
            shaders.setdefault(key, shader)
    return shaders

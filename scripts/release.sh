#!/usr/bin/env bash
# Checks that a version is ready, and prints the commands that publish it. It changes nothing.
#   scripts/release.sh          all checks; minutes
#   scripts/release.sh --quick  only what takes seconds: version, changelog, git
set -euo pipefail
cd "$(dirname "$0")/.."

problems=()
problem() { problems+=("$1"); echo "NOT READY: $1" >&2; }
say() { echo "== $1"; }

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' dafast/_version.py)
say "version $version"
[[ $version =~ ^[0-9]+\.[0-9]+\.[0-9]+$ ]] ||
    problem "dafast/_version.py has $version: set a version such as 0.1.0"
# The section of the version needs a date and at least one line.
heading=$(grep -n "^## $version" CHANGELOG.md || true)
if ! [[ $heading =~ \ -\ [0-9]{4}-[0-9]{2}-[0-9]{2}$ ]]; then
    problem "CHANGELOG.md has no heading '## $version - YYYY-MM-DD'"
elif ! sed -n "/^## $version/,/^## /p" CHANGELOG.md | grep -q '^- '; then
    problem "CHANGELOG.md says nothing about $version"
fi
if sed -n '/^## Unreleased/,/^## [0-9]/p' CHANGELOG.md | grep -q '^- '; then
    problem "CHANGELOG.md has changes under 'Unreleased': move them to $version"
fi
if git rev-parse -q --verify "refs/tags/v$version" >/dev/null; then
    problem "the tag v$version exists"
fi
[ -z "$(git status --porcelain)" ] || problem "the working tree has changes that are not committed"
if grep -q 'A placeholder' pyproject.toml; then
    problem "[project.urls] in pyproject.toml is a placeholder"
fi

if [ "${1:-}" != --quick ] && [ ${#problems[@]} = 0 ]; then
    say "wheel, lint, types and tests (.ci/run)"
    .ci/run || problem ".ci/run failed"
    say "documentation"
    make docs || problem "the documentation does not build"
fi

if [ ${#problems[@]} -gt 0 ]; then
    echo "${#problems[@]} problem(s): version $version is not ready" >&2
    exit 1
fi
if [ "${1:-}" = --quick ]; then
    echo "the quick checks passed; scripts/release.sh runs the others"
    exit 0
fi
cat <<END
version $version is ready. Publish it with:
  git tag -a v$version -m "dafast $version"
  git push origin v$version
.github/workflows/release.yml then builds the wheels and uploads them.
END

#!/usr/bin/env bash
# Builds the documentation site in site/, offline and strict. `make docs` installs what it needs.
set -euo pipefail
cd "$(dirname "$0")/.."

source=$(mktemp -d)
trap 'rm -rf "$source"' EXIT
python scripts/site_source.py "$source/site"
root=$PWD
(cd "$source/site" && PYTHONPATH=$root python -m zensical build --strict)
python scripts/check_site.py "$source/site/site"
rm -rf site
mv "$source/site/site" site
echo "the site is in site/: open site/index.html, or, with search, run python -m http.server -d site"

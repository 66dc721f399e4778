"""Employee directory: list, search, add and remove, with Python's standard library alone.

GET  /               the list; ?q=TEXT keeps names, departments and addresses that contain TEXT
GET  /api/employees  the same as JSON
POST /add            form fields name, department, email
POST /remove         form field id
"""

import html
import json
import os
import sqlite3
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

FIELDS = ("name", "department", "email")
MAX_FIELD = 200  # characters; longer input is refused
MAX_FORM = 8192  # bytes; nginx in front has the same limit

SCHEMA = """
CREATE TABLE IF NOT EXISTS employees (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL,
    department TEXT NOT NULL,
    email TEXT NOT NULL
)
"""


class Directory:
    """The employees, in a SQLite file. Each call opens it: requests run in threads."""

    def __init__(self, path):
        self.path = path
        with self.connect() as database:
            database.execute(SCHEMA)

    def connect(self):
        database = sqlite3.connect(self.path, timeout=10)
        database.row_factory = sqlite3.Row
        return database

    def search(self, text):
        # % and _ are letters like any other here.
        pattern = "%" + text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"
        where = " OR ".join(f"{field} LIKE :p ESCAPE '\\'" for field in FIELDS)
        query = f"SELECT id, name, department, email FROM employees WHERE {where} ORDER BY name, id"
        with self.connect() as database:
            return [dict(row) for row in database.execute(query, {"p": pattern})]

    def add(self, employee):
        values = [employee[field] for field in FIELDS]
        with self.connect() as database:
            database.execute("INSERT INTO employees (name, department, email) VALUES (?, ?, ?)", values)

    def remove(self, identifier):
        with self.connect() as database:
            return database.execute("DELETE FROM employees WHERE id = ?", [identifier]).rowcount == 1


def row(employee):
    cells = "".join(f"<td>{html.escape(employee[field])}</td>" for field in FIELDS)
    button = (
        '<td><form method="post" action="/remove">'
        f'<button name="id" value="{employee["id"]}">Remove</button></form></td>'
    )
    return f"<tr>{cells}{button}</tr>"


class Handler(BaseHTTPRequestHandler):
    directory = None
    page = None

    def do_GET(self):
        address = urlsplit(self.path)
        text = parse_qs(address.query).get("q", [""])[0][:MAX_FIELD]
        if address.path == "/api/employees":
            self.answer("application/json", json.dumps(self.directory.search(text)))
        elif address.path == "/":
            found = self.directory.search(text)
            rows = "".join(map(row, found)) or '<tr><td colspan="4">Nobody found.</td></tr>'
            parts = {"{{query}}": html.escape(text), "{{count}}": str(len(found)), "{{rows}}": rows}
            page = self.page
            for mark, value in parts.items():
                page = page.replace(mark, value)
            self.answer("text/html; charset=utf-8", page)
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self):
        form = self.read_form()
        if form is None:
            self.send_error(HTTPStatus.BAD_REQUEST, "The form is too long or not a form")
        elif self.path == "/add":
            employee = {field: form.get(field, "").strip() for field in FIELDS}
            if all(0 < len(value) <= MAX_FIELD for value in employee.values()):
                self.directory.add(employee)
                self.redirect()
            else:
                self.send_error(HTTPStatus.BAD_REQUEST, f"Fill in every field, at most {MAX_FIELD} characters")
        elif self.path == "/remove":
            identifier = form.get("id", "")
            if identifier.isdecimal() and len(identifier) < 18 and self.directory.remove(int(identifier)):
                self.redirect()
            else:
                self.send_error(HTTPStatus.NOT_FOUND, "No such employee")
        else:
            self.send_error(HTTPStatus.NOT_FOUND)

    def read_form(self):
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_FORM:
            return None
        try:
            text = self.rfile.read(int(length)).decode()
        except UnicodeDecodeError:
            return None
        return {name: values[0] for name, values in parse_qs(text).items()}

    def answer(self, kind, text):
        body = text.encode()
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def redirect(self):
        self.send_response(HTTPStatus.SEE_OTHER)
        self.send_header("Location", "/")
        self.send_header("Content-Length", "0")
        self.end_headers()


def main():
    Handler.directory = Directory(os.environ.get("DATABASE", "employees.sqlite"))
    Handler.page = Path(__file__).with_name("page.html").read_text()
    address = ("127.0.0.1", int(os.environ.get("PORT", "8000")))
    ThreadingHTTPServer(address, Handler).serve_forever()


if __name__ == "__main__":
    main()

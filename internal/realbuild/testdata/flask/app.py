import os

from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return {"hello": "flask", "uid": os.getuid()}


@app.get("/health")
def health():
    return "ok"

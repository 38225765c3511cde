"""The same runs over HTTP: a web page and the OpenAI Videos API. One process answers, another owns the device."""
